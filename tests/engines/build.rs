//! Images that are built with the runtime under test.

use std::fs;

use crate::case::{Case, case};
use crate::engine::Engine;

pub const CASES: &[Case] =
    &[case!(dockerfile_is_built).core(), case!(commit_and_diff), case!(export_is_the_file_system)];

fn dockerfile_is_built(engine: &Engine) {
    let dir = engine.dir().join("context");
    fs::create_dir_all(&dir).expect("create a directory");
    fs::write(dir.join("hello.sh"), "#!/bin/sh\necho built by $1\n").expect("write a file");
    let steps = "FROM box\nCOPY hello.sh /usr/bin/hello\nRUN chmod 755 /usr/bin/hello && mkdir /made && hello someone >/made/out\n\
                 RUN rm /etc/group\nUSER ann\nWORKDIR /made\nCMD [\"cat\", \"out\"]\n";
    fs::write(dir.join("Dockerfile"), steps).expect("write a file");
    engine.ok(&["build", "-t", "built", dir.to_str().expect("the path is UTF-8")]);
    assert_eq!(engine.ok(&["run", "--rm", "built"]), "built by someone");
    engine.run(&["run", "--rm", "built", "test", "-e", "/etc/group"]).code(1);
    engine.ok(&["rmi", "built"]);
}

fn commit_and_diff(engine: &Engine) {
    let script = "echo new >/new; rm /etc/group; echo more >>/etc/passwd";
    engine.ok(&["run", "--name", "changed", "box", "sh", "-c", script]);
    let diff = engine.ok(&["diff", "changed"]);
    for line in ["A /new", "D /etc/group", "C /etc/passwd"] {
        assert!(diff.lines().any(|one| one == line), "no {line:?} in {diff}");
    }
    engine.ok(&["commit", "changed", "kept"]);
    assert_eq!(engine.ok(&["run", "--rm", "kept", "cat", "/new"]), "new");
    engine.ok(&["rmi", "kept"]);
}

fn export_is_the_file_system(engine: &Engine) {
    engine.ok(&["run", "--name", "whole", "box", "sh", "-c", "mkdir /x; echo y >/x/y"]);
    let archive = engine.run(&["export", "whole"]).code(0);
    assert!(archive.stdout.windows(4).any(|w| w == b"x/y\0"), "no x/y in the archive");
}
