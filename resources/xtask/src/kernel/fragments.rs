//! Configuration fragments: parses their options, and compares them with a finished `.config`.

use std::collections::{BTreeMap, HashMap};

use anyhow::bail;

/// The options of all fragments by name.
pub type Options = BTreeMap<String, Setting>;

/// The value of an option.
#[derive(Debug, PartialEq)]
pub struct Setting {
    /// Value as in a `.config`: `y`, `n`, a number or a quoted string.
    pub value: String,
    /// Where it is set: `file:line`.
    pub location: String,
}

/// Adds the options of the fragment `file` with the content `text`. Each line is empty, a comment or `CONFIG_X=value`.
/// Refuses modules (`=m`) and duplicate options.
pub fn add(all: &mut Options, file: &str, text: &str) -> anyhow::Result<()> {
    for (index, line) in text.lines().enumerate() {
        let (line, location) = (line.trim(), format!("{file}:{}", index + 1));
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            bail!("{location}: not CONFIG_X=value: {line}")
        };
        if !is_name(name) || !is_value(value) {
            bail!("{location}: invalid name or value: {line}");
        }
        if let Some(first) = all.get(name) {
            bail!("{location}: {name} is already set in {}", first.location);
        }
        all.insert(name.to_string(), Setting { value: value.to_string(), location });
    }
    Ok(())
}

/// Returns the options in the format of `KCONFIG_ALLCONFIG`.
pub fn render(all: &Options) -> String {
    all.iter().map(|(name, setting)| format!("{name}={}\n", setting.value)).collect()
}

/// Returns the options that have another value in `config`, the text of a `.config`. Kconfig silently drops an option
/// whose dependencies are off, and enables an option that another option selects.
pub fn differences(all: &Options, config: &str) -> Vec<String> {
    let values: HashMap<&str, &str> = config
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .collect();
    let differs = |(name, setting): (&String, &Setting)| {
        // Kconfig writes a disabled option as a comment, or not at all.
        let got = values.get(name.as_str()).copied().unwrap_or("n");
        (got != setting.value)
            .then(|| format!("{}: {name}={}, but {got} in .config", setting.location, setting.value))
    };
    all.iter().filter_map(differs).collect()
}

fn is_name(name: &str) -> bool {
    name.strip_prefix("CONFIG_").is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

fn is_value(value: &str) -> bool {
    let quoted = value.len() >= 2 && value.starts_with('"') && value.ends_with('"');
    let number = value.strip_prefix('-').unwrap_or(value);
    let number = number.strip_prefix("0x").unwrap_or(number);
    let number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_hexdigit());
    quoted || value == "y" || value == "n" || number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Options {
        let mut all = BTreeMap::new();
        add(&mut all, "f.config", text).unwrap();
        all
    }

    fn refused(text: &str) -> String {
        add(&mut BTreeMap::new(), "f.config", text).unwrap_err().to_string()
    }

    #[test]
    fn every_kind_of_value_is_parsed() {
        let all = parsed("# why\nCONFIG_A=y\n\nCONFIG_B=n\nCONFIG_C=-1\nCONFIG_D=0x1000\nCONFIG_E=\"a b\"\n");
        assert_eq!(render(&all), "CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=-1\nCONFIG_D=0x1000\nCONFIG_E=\"a b\"\n");
        assert_eq!(all["CONFIG_B"].location, "f.config:4");
    }

    #[test]
    fn invalid_lines_are_refused_with_their_location() {
        for line in [
            "CONFIG_A",
            "A=y",
            "CONFIG_A=m",
            "CONFIG_A=yes",
            "CONFIG_=y",
            "CONFIG_A B=y",
            "CONFIG_A=\"x",
            "CONFIG_A=",
        ] {
            let message = refused(&format!("\n{line}\n"));
            assert!(message.starts_with("f.config:2: "), "{line}: {message}");
        }
    }

    #[test]
    fn a_duplicate_option_is_refused_with_the_location_of_the_first() {
        assert!(refused("CONFIG_A=y\nCONFIG_A=y\n").ends_with("CONFIG_A is already set in f.config:1"));
    }

    #[test]
    fn dropped_changed_and_selected_options_are_differences() {
        let all = parsed("CONFIG_KEPT=y\nCONFIG_DROPPED=y\nCONFIG_N=1\nCONFIG_OFF=n\nCONFIG_SELECTED=n\n");
        let config =
            "# CONFIG_OFF is not set\nCONFIG_KEPT=y\nCONFIG_N=2\nCONFIG_SELECTED=y\nCONFIG_DROPPED_TOO=y\n";
        assert_eq!(
            differences(&all, config),
            [
                "f.config:2: CONFIG_DROPPED=y, but n in .config",
                "f.config:3: CONFIG_N=1, but 2 in .config",
                "f.config:5: CONFIG_SELECTED=n, but y in .config"
            ]
        );
        assert!(differences(&parsed("CONFIG_KEPT=y\n"), config).is_empty());
    }
}
