//! Sorts the table of static branches, which the kernel would otherwise sort at each boot (`jump-table.patch`).
//!
//! An entry is `struct jump_entry` of Linux's include/linux/jump_label.h with relative addresses: the address of the
//! branch and of its target as signed 32-bit offsets from their own fields, and the address of the key as a signed
//! 64-bit offset, whose two low bits are flags.

use std::ops::Range;

use anyhow::{Context, ensure};

/// Bytes of an entry.
const ENTRY: usize = 16;
/// Flags in the offset of the key: likely, and in an init section.
const FLAGS: u64 = 3;

/// An entry with absolute addresses, in the order in which the kernel wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    key: u64,
    code: u64,
    target: u64,
    flags: u64,
}

/// Returns the addresses of the table, from the text of a System.map.
pub fn addresses(system_map: &str) -> anyhow::Result<Range<u64>> {
    let address = |symbol: &str| {
        let line = system_map.lines().find(|line| line.split(' ').nth(2) == Some(symbol));
        let word = line.and_then(|line| line.split(' ').next());
        let address = word.and_then(|word| u64::from_str_radix(word, 16).ok());
        address.with_context(|| format!("System.map has no address of {symbol}"))
    };
    Ok(address("__start___jump_table")?..address("__stop___jump_table")?)
}

/// Sorts the entries of `table`, which the kernel has at `address`.
pub fn sort(table: &mut [u8], address: u64) -> anyhow::Result<()> {
    ensure!(table.len().is_multiple_of(ENTRY), "the jump table of vmlinux ends within an entry");
    let places = (address..).step_by(ENTRY);
    let mut entries: Vec<Entry> =
        table.chunks(ENTRY).zip(places.clone()).map(|(bytes, place)| decode(bytes, place)).collect();
    entries.sort_unstable();
    for ((bytes, place), entry) in table.chunks_mut(ENTRY).zip(places).zip(entries) {
        bytes.copy_from_slice(&encode(entry, place)?);
    }
    Ok(())
}

fn decode(bytes: &[u8], place: u64) -> Entry {
    let short = |at: usize| i32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let key = u64::from_le_bytes(bytes[8..ENTRY].try_into().expect("eight bytes"));
    Entry {
        code: place.wrapping_add_signed(short(0).into()),
        target: (place + 4).wrapping_add_signed(short(4).into()),
        key: (place + 8).wrapping_add(key & !FLAGS),
        flags: key & FLAGS,
    }
}

fn encode(entry: Entry, place: u64) -> anyhow::Result<[u8; ENTRY]> {
    let short = |address: u64, field: u64| {
        let offset = i32::try_from(address.wrapping_sub(field).cast_signed());
        offset.with_context(|| format!("{address:#x} is too far from the jump table of vmlinux"))
    };
    let mut bytes = [0; ENTRY];
    bytes[..4].copy_from_slice(&short(entry.code, place)?.to_le_bytes());
    bytes[4..8].copy_from_slice(&short(entry.target, place + 4)?.to_le_bytes());
    bytes[8..].copy_from_slice(&(entry.key.wrapping_sub(place + 8) | entry.flags).to_le_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: u64 = 0xffff_ffff_8171_6b00;
    const TEXT: u64 = 0xffff_ffff_8100_0000;
    const KEYS: u64 = 0xffff_ffff_8180_0000;

    fn decoded(table: &[u8]) -> Vec<Entry> {
        table.chunks(ENTRY).zip((TABLE..).step_by(ENTRY)).map(|(bytes, place)| decode(bytes, place)).collect()
    }

    #[test]
    fn entries_are_in_order_of_key_and_code_and_keep_addresses_and_flags() {
        let entry =
            |key, code, flags| Entry { key: KEYS + key, code: TEXT + code, target: TEXT + code + 90, flags };
        let entries = [entry(32, 7, 2), entry(16, 900, 0), entry(32, 3, 1), entry(0, 5000, 3)];
        let places = (TABLE..).step_by(ENTRY);
        let mut table: Vec<u8> =
            entries.iter().zip(places).flat_map(|(&entry, place)| encode(entry, place).unwrap()).collect();
        assert_eq!(decoded(&table), entries);
        sort(&mut table, TABLE).unwrap();
        assert_eq!(decoded(&table), [entries[3], entries[1], entries[2], entries[0]]);
    }

    #[test]
    fn invalid_tables_are_refused() {
        assert!(sort(&mut [0; ENTRY + 1], TABLE).is_err());
        let far = Entry { key: KEYS, code: TABLE - (3 << 30), target: TEXT, flags: 0 };
        assert!(encode(far, TABLE).is_err());
    }

    #[test]
    fn addresses_are_those_of_the_symbols() {
        let map = "ffffffff81716b00 D __start___jump_table\nffffffff81719a20 D __stop___jump_table\n";
        assert_eq!(addresses(map).unwrap(), TABLE..0xffff_ffff_8171_9a20);
        assert!(addresses("ffffffff81716b00 D __start___jump_table\n").is_err());
    }
}
