//! An exec process: the container's init process with the changes of `vmm exec`'s flags.

use serde::{Deserialize, Serialize};

use crate::spec::{Given, Process};

/// Changes of an exec process against the init process. `None`, false and empty lists change nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ProcessChanges {
    /// Program and arguments. Always replaces those of the init process.
    pub args: Vec<String>,
    pub terminal: bool,
    /// Additional environment variables, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Additional groups.
    pub additional_gids: Vec<u32>,
    pub no_new_privileges: bool,
    /// Additional capabilities: bounding, effective and permitted.
    pub capabilities: Vec<String>,
    pub apparmor_profile: Option<String>,
    pub selinux_label: Option<String>,
}

impl ProcessChanges {
    /// Returns the exec process that results from a container's `init` process.
    pub fn apply(&self, init: &Process) -> Process {
        let mut process = init.clone();
        process.args.clone_from(&self.args);
        // consoleSize in config.json is that of the init process's terminal.
        (process.terminal, process.console_size) = (self.terminal, None);
        process.env.extend(self.env.iter().cloned());
        if let Some(cwd) = &self.cwd {
            process.cwd.clone_from(cwd);
        }
        process.user.uid = self.uid.unwrap_or(process.user.uid);
        process.user.gid = self.gid.unwrap_or(process.user.gid);
        process.user.additional_gids.extend(&self.additional_gids);
        process.no_new_privileges |= self.no_new_privileges;
        if !self.capabilities.is_empty() {
            let sets = process.capabilities.get_or_insert_default();
            for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
                set.extend(self.capabilities.iter().cloned());
            }
        }
        if let Some(profile) = &self.apparmor_profile {
            process.apparmor_profile.clone_from(profile);
        }
        if let Some(label) = &self.selinux_label {
            process.selinux_label = Given(!label.is_empty());
        }
        process
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_override_the_init_process() {
        let init: Process = serde_json::from_value(json!({
            "terminal": true, "consoleSize": {"height": 1, "width": 2}, "cwd": "/", "args": ["init"],
            "env": ["A=b"], "user": {"uid": 5, "gid": 6}, "capabilities": {"bounding": ["CAP_KILL"]}
        }))
        .unwrap();
        let changes = ProcessChanges {
            args: vec!["sh".into()],
            cwd: Some("/x".into()),
            env: vec!["C=d".into()],
            uid: Some(7),
            additional_gids: vec![9],
            no_new_privileges: true,
            capabilities: vec!["CAP_CHOWN".into()],
            ..ProcessChanges::default()
        };
        let process = changes.apply(&init);
        assert_eq!((process.args, process.terminal), (vec!["sh".to_owned()], false));
        assert_eq!((process.cwd.as_str(), process.env), ("/x", vec!["A=b".to_owned(), "C=d".to_owned()]));
        assert_eq!((process.user.uid, process.user.gid), (7, 6));
        assert_eq!(process.user.additional_gids, [9]);
        assert!(process.no_new_privileges && process.console_size.is_none());
        let sets = process.capabilities.unwrap();
        assert_eq!(
            (sets.bounding, sets.effective),
            (vec!["CAP_KILL".to_owned(), "CAP_CHOWN".to_owned()], vec!["CAP_CHOWN".to_owned()])
        );
        let process = ProcessChanges::default().apply(&init);
        assert_eq!((process.user.uid, process.env.len(), process.no_new_privileges), (5, 1, false));
    }
}
