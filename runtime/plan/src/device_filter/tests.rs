use super::*;

/// Parses a rule such as `allow c 1:3 rw`. The type `a` stands for both types.
fn rule(text: &str) -> DeviceRule {
    let mut words = text.split(' ');
    let mut word = || words.next().unwrap().to_owned();
    let (effect, kind, numbers, access) = (word(), word(), word(), word());
    let number = |text: &str| (text != "*").then(|| text.parse().unwrap());
    let (major, minor) = numbers.split_once(':').unwrap();
    DeviceRule { allow: effect == "allow", kind, major: number(major), minor: number(minor), access }
}

fn given(rules: &[&str]) -> Vec<DeviceRule> {
    rules.iter().map(|text| rule(text)).collect()
}

/// The expected answer for one letter and device: the last matching rule decides, and runc's rules come last.
fn specified(rules: &[&str], kind: char, (major, minor): (i64, i64), letter: char) -> bool {
    const RUNC: [&str; 10] = [
        "allow c *:* m",
        "allow b *:* m",
        "allow c 1:3 rwm",
        "allow c 1:8 rwm",
        "allow c 1:7 rwm",
        "allow c 5:0 rwm",
        "allow c 1:5 rwm",
        "allow c 1:9 rwm",
        "allow c 136:* rwm",
        "allow c 5:2 rwm",
    ];
    let fits = |rule: &DeviceRule| {
        let number = |rule: Option<i64>, device| rule.is_none_or(|number| number == device);
        (rule.kind == "a" || rule.kind.starts_with(kind))
            && number(rule.major, major)
            && number(rule.minor, minor)
            && rule.access.contains(letter)
    };
    let mut rules = given(rules).into_iter().chain(given(&RUNC));
    rules.rfind(fits).is_some_and(|rule| rule.allow)
}

/// A model of the kernel's controller (security/device_cgroup.c).
#[derive(Default)]
struct Kernel {
    deny: bool,
    exceptions: Vec<(char, String, String, String)>,
}

impl Kernel {
    fn new(rules: &[String]) -> Kernel {
        let mut kernel = Kernel::default();
        for rule in rules {
            let (file, value) = rule.split_once(' ').unwrap();
            kernel.write(file == "deny", value);
        }
        kernel
    }

    fn write(&mut self, deny: bool, value: &str) {
        if value == "a" {
            *self = Kernel { deny, exceptions: Vec::new() };
            return;
        }
        // A rule with the effect of the default would remove exceptions; the translation never writes one.
        assert_ne!(self.deny, deny, "{value}");
        let words: Vec<&str> = value.split(' ').collect();
        let [kind, numbers, access] = words[..] else { panic!("{value}") };
        let (major, minor) = numbers.split_once(':').unwrap();
        let same = |known: &&mut (char, String, String, String)| {
            kind.starts_with(known.0) && known.1 == major && known.2 == minor
        };
        match self.exceptions.iter_mut().find(same) {
            Some(known) => known.3 += access,
            None => self.exceptions.push((
                kind.chars().next().unwrap(),
                major.to_owned(),
                minor.to_owned(),
                access.to_owned(),
            )),
        }
    }

    fn allows(&self, kind: char, (major, minor): (i64, i64), letter: char) -> bool {
        let number = |known: &str, number: i64| known == "*" || known == number.to_string();
        let found = self.exceptions.iter().any(|(of, first, rest, access)| {
            *of == kind && number(first, major) && number(rest, minor) && access.contains(letter)
        });
        found == self.deny
    }
}

const SPEC: &str = "deny a *:* rwm";

#[test]
fn a_bundle_without_rules_has_runc_s() {
    let expected = [
        "deny a",
        "allow c *:* m",
        "allow b *:* m",
        "allow c 1:3 rwm",
        "allow c 1:5 rwm",
        "allow c 1:7 rwm",
        "allow c 1:8 rwm",
        "allow c 1:9 rwm",
        "allow c 5:0 rwm",
        "allow c 5:2 rwm",
        "allow c 136:* rwm",
    ];
    assert_eq!(rules(&[]).unwrap(), expected);
    assert_eq!(rules(&given(&[SPEC])).unwrap(), expected);
}

#[test]
fn a_container_that_can_use_all_devices_has_no_rules() {
    for list in [
        &["allow a *:* rwm"][..],
        &[SPEC, "allow c 10:* r", "allow a *:* "],
        &["deny c 1:3 rwm", "allow a *:* rwm"],
    ] {
        assert_eq!(rules(&given(list)).unwrap(), [""; 0], "{list:?}");
    }
}

#[test]
fn the_kernel_answers_as_the_rules_say() {
    let lists: [&[&str]; 12] = [
        &[],
        &[SPEC],
        &[SPEC, "allow c 10:200 rwm"],
        &[SPEC, "allow c 10:* rw", "allow b 7:* rwm", "allow c 1:11 r"],
        &[SPEC, "allow c 10:200 rw", "deny c 10:* w"],
        &[SPEC, "allow c 10:200 rw", "allow c 10:229 rw", "deny c 10:229 rw"],
        &[SPEC, "allow a 7:* r", "deny c *:* r"],
        &["allow a *:* rwm", "deny c 10:* rwm", "allow c *:* r"],
        &["allow a *:* rwm", "deny b *:* rwm"],
        &["allow a *:* rwm", "deny c 229:0 w", "deny c 10:229 rw", "deny c 10:229 rwm"],
        &["allow c 10:* rwm", SPEC, "allow c *:11 w"],
        &["allow a *:* rw"],
    ];
    let devices =
        [(1, 3), (1, 5), (1, 11), (5, 0), (5, 1), (5, 2), (7, 0), (10, 183), (10, 200), (10, 229), (10, 237)];
    let devices = devices.into_iter().chain([(136, 0), (136, 9), (229, 0), (7, 11), (0, 0)]);
    for list in lists {
        let kernel = Kernel::new(&rules(&given(list)).unwrap());
        for device in devices.clone() {
            for (kind, letter) in ["cr", "cw", "cm", "br", "bw", "bm"].map(|pair| pair.split_at(1)) {
                let (kind, letter) = (kind.chars().next().unwrap(), letter.chars().next().unwrap());
                let expected = specified(list, kind, device, letter);
                assert_eq!(
                    kernel.allows(kind, device, letter),
                    expected,
                    "{list:?}: {kind} {device:?} {letter}"
                );
            }
        }
    }
}

#[test]
fn a_rule_about_a_part_of_an_exception_is_refused_by_its_path() {
    let error = rules(&given(&[SPEC, "allow c 10:* rwm", "deny c 10:200 rw"])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "config.json linux.resources.devices[2]: not supported: c 10:200 rw is only a part of c 10:* rwm, which an earlier rule excepts from the default"
    );
    // Other letters and other devices are not touched.
    assert!(rules(&given(&[SPEC, "allow c 10:* r", "deny c 10:200 w", "deny b 10:200 r"])).is_ok());
    let error = rules(&given(&["allow a *:* rwm", "deny c 1:* rw"])).unwrap_err();
    assert!(error.to_string().contains("c 1:3 rwm is only a part of c 1:* rw,"), "{error}");
}

#[test]
fn invalid_rules_are_refused_by_path() {
    let refused = |change: fn(&mut DeviceRule)| {
        let mut rule = rule("allow c 1:3 rw");
        change(&mut rule);
        rules(&[rule]).unwrap_err().to_string()
    };
    let at = |name: &str| format!("config.json linux.resources.devices[0].{name}: ");
    assert!(refused(|rule| rule.kind = "u".to_owned()).starts_with(&at("type")));
    assert!(refused(|rule| rule.access = "rx".to_owned()).starts_with(&at("access")));
    assert!(refused(|rule| rule.major = Some(1 << 32)).starts_with(&at("major")));
    assert!(refused(|rule| rule.minor = Some(i64::MAX)).starts_with(&at("minor")));
    let many: Vec<DeviceRule> =
        (0..1024).map(|minor| DeviceRule { minor: Some(minor), ..rule("allow c 10:0 r") }).collect();
    assert!(rules(&many).unwrap_err().to_string().contains("limit of 1024 rules exceeded"));
    assert!(rules(&many[..1000]).is_ok());
}
