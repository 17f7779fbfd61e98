use std::os::unix::fs::MetadataExt;

use super::*;

fn saved() -> Saved {
    Saved {
        label: "format 3\n".into(),
        container: "c1".into(),
        memory_mib: 128,
        vcpus: 1,
        kernel: Kernel::Full,
        share: ShareType::VirtioFs,
        shape: Shape { places: 8, ports: [true, false] },
        terminal: false,
        stream: 1,
        next_stream: 3,
        link: vec![1, 2],
        streams: vec![3],
    }
}

#[test]
fn the_init_process_has_this_process_s_streams() {
    let [stdin, stdout, stderr] = [0, 1, 2];
    let spec = |seq, source, sink| StreamSpec { seq, source, sink: Some(sink) };
    assert_eq!(saved().specs(), [spec(1, Some(stdin), stdout), spec(2, None, stderr)]);
    assert_eq!(Saved { terminal: true, ..saved() }.specs(), [spec(1, Some(stdin), stdout)]);
}

#[test]
fn bytes_that_are_no_checkpoint_are_refused() {
    for bytes in [&b""[..], b"short", &[0; 100], b"vmm\0ckpt\x02\0\0\0and more bytes"] {
        assert!(decode(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn a_directory_has_a_checkpoint_only_once_it_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let draft = Draft::begin(&path).unwrap();
    assert!(path.join(MEMORY).exists() && !path.join(STATE).exists() && !path.join(INVENTORY).exists());
    draft.finish().unwrap();
    for (name, mode) in [("", 0o700), (MEMORY, 0o600), (STATE, 0o600), (INVENTORY, 0o600)] {
        assert_eq!(fs::metadata(path.join(name)).unwrap().mode() & 0o777, mode, "{name}");
    }
    // Another one in its place begins with nothing.
    let draft = Draft::begin(&path).unwrap();
    assert!(!path.join(STATE).exists() && !path.join(INVENTORY).exists());
    let error = format!("{:#}", Checkpoint::open(&path).unwrap_err());
    assert!(error.contains("No such file or directory"), "{error}");
    draft.discard();
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
}

#[test]
fn a_checkpoint_that_others_can_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Draft::begin(dir.path()).unwrap().finish().unwrap();
    fs::set_permissions(dir.path().join(STATE), Permissions::from_mode(0o666)).unwrap();
    let error = format!("{:#}", Checkpoint::open(dir.path()).unwrap_err());
    assert!(error.contains("others can write to it"), "{error}");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    assert!(Draft::begin(dir.path()).is_err());
}
