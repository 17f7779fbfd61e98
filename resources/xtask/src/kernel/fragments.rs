//! Configuration fragments: their requests, and those that a finished `.config` does not meet.

use std::collections::{BTreeMap, HashMap};

use anyhow::bail;

/// A requested option.
#[derive(Debug, PartialEq)]
pub struct Request {
    /// Value as in a `.config`: `y`, `n`, a number or a quoted string.
    pub value: String,
    /// Location: `file:line`.
    pub place: String,
}

/// Adds the requests of the fragment `file` with the content `text`. Each line is empty, a comment or `CONFIG_X=value`.
/// Refuses modules (`=m`) and duplicate options.
pub fn add(all: &mut BTreeMap<String, Request>, file: &str, text: &str) -> anyhow::Result<()> {
    for (index, line) in text.lines().enumerate() {
        let (line, place) = (line.trim(), format!("{file}:{}", index + 1));
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { bail!("{place}: no CONFIG_X=value: {line}") };
        if !is_name(name) || !is_value(value) {
            bail!("{place}: no option that a fragment can ask for: {line}");
        }
        if let Some(first) = all.get(name) {
            bail!("{place}: {name} was asked for before, in {}", first.place);
        }
        all.insert(name.to_string(), Request { value: value.to_string(), place });
    }
    Ok(())
}

/// Returns the requests in the format of `KCONFIG_ALLCONFIG`.
pub fn render(all: &BTreeMap<String, Request>) -> String {
    all.iter().map(|(name, request)| format!("{name}={}\n", request.value)).collect()
}

/// Returns the requests that `config`, the text of a `.config`, does not meet. Kconfig silently drops an option whose
/// dependencies are off, and turns on an option that another option selects.
pub fn unmet(all: &BTreeMap<String, Request>, config: &str) -> Vec<String> {
    let have: HashMap<&str, &str> = config
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .collect();
    let differs = |(name, request): (&String, &Request)| {
        // Kconfig writes a disabled option as a comment, or not at all.
        let got = have.get(name.as_str()).copied().unwrap_or("n");
        (got != request.value).then(|| format!("{}: {name}={} became {got}", request.place, request.value))
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

    fn parsed(text: &str) -> BTreeMap<String, Request> {
        let mut all = BTreeMap::new();
        add(&mut all, "f.config", text).unwrap();
        all
    }

    fn refused(text: &str) -> String {
        add(&mut BTreeMap::new(), "f.config", text).unwrap_err().to_string()
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let all = parsed("# why\nCONFIG_A=y\n\nCONFIG_B=n\nCONFIG_C=-1\nCONFIG_D=0x1000\nCONFIG_E=\"a b\"\n");
        assert_eq!(render(&all), "CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=-1\nCONFIG_D=0x1000\nCONFIG_E=\"a b\"\n");
        assert_eq!(all["CONFIG_B"].place, "f.config:4");
    }

    #[test]
    fn lines_that_are_no_request_are_refused_by_place() {
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
    fn second_request_for_an_option_names_the_first() {
        assert!(
            refused("CONFIG_A=y\nCONFIG_A=y\n").ends_with("CONFIG_A was asked for before, in f.config:1")
        );
    }

    #[test]
    fn unmet_names_what_was_dropped_changed_or_selected() {
        let all = parsed("CONFIG_KEPT=y\nCONFIG_DROPPED=y\nCONFIG_N=1\nCONFIG_OFF=n\nCONFIG_SELECTED=n\n");
        let config =
            "# CONFIG_OFF is not set\nCONFIG_KEPT=y\nCONFIG_N=2\nCONFIG_SELECTED=y\nCONFIG_DROPPED_TOO=y\n";
        assert_eq!(
            unmet(&all, config),
            [
                "f.config:2: CONFIG_DROPPED=y became n",
                "f.config:3: CONFIG_N=1 became 2",
                "f.config:5: CONFIG_SELECTED=n became y"
            ]
        );
        assert!(unmet(&parsed("CONFIG_KEPT=y\n"), config).is_empty());
    }
}
