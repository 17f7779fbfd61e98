use std::os::unix::fs::symlink;

use super::*;

#[test]
fn directory_is_the_user_s_own_unless_one_is_given() {
    let env = |set: &'static [(&str, &str)]| {
        move |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(*value))
    };
    let given = Store::new(Some("/given".into()), 9, env(&[]));
    assert_eq!(given.path(), Path::new("/given"));
    let own = Store::new(None, 9, env(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/cache/a")]));
    let rootless = User::of_process().is_rootless(None);
    let expected = if rootless { "/cache/a/vmm/templates" } else { "/var/lib/vmm/templates" };
    assert_eq!(own.path(), Path::new(expected));
}

#[test]
fn a_draft_is_removed_and_so_is_what_a_killed_process_left() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store { path: folder.path().join("a/b"), limit: 0 };
    assert!(!store.exists() && store.names().unwrap().is_empty());
    let locked = store.lock().unwrap();
    let draft = locked.begin().unwrap();
    let path = draft.path.clone();
    draft.memory().set_len(4096).unwrap();
    assert!(path.join(MEMORY).exists());
    drop(draft);
    assert!(!path.exists());
    let left = locked.begin().unwrap();
    std::mem::forget(left);
    drop(locked);
    assert!(path.exists());
    store.lock().unwrap();
    assert!(!path.exists());
    assert_eq!(fs::metadata(store.path()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn names_of_other_files_are_no_templates() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store { path: folder.path().to_owned(), limit: 0 };
    for name in ["0123456789abcdef", "0123456789ABCDEF", "0123456789abcde", ".new-1", "lock"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    fs::remove_dir(folder.path().join("lock")).unwrap();
    assert_eq!(store.names().unwrap(), ["0123456789abcdef"]);
    assert!(store.open("../etc").unwrap().is_none());
    let locked = store.lock().unwrap();
    assert!(!locked.remove("..").unwrap() && !locked.remove("ffffffffffffffff").unwrap());
    assert!(locked.remove("0123456789abcdef").unwrap());
    assert!(store.names().unwrap().is_empty());
}

#[test]
fn files_that_others_can_change_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0123456789abcdef");
    assert!(open(&path).unwrap().is_none());
    fs::create_dir(&path).unwrap();
    let error = |path: &Path| format!("{:#}", anyhow::Error::from(open(path).unwrap_err()));
    assert!(error(&path).contains("No such file"), "{}", error(&path));
    fs::write(path.join(STATE), "nothing").unwrap();
    assert!(error(&path).contains("damaged"), "{}", error(&path));
    fs::set_permissions(path.join(STATE), Permissions::from_mode(0o620)).unwrap();
    assert!(error(&path).contains("others can write to it"), "{}", error(&path));
    fs::remove_file(path.join(STATE)).unwrap();
    symlink("/dev/null", path.join(STATE)).unwrap();
    assert!(error(&path).contains("open"), "{}", error(&path));
    fs::remove_file(path.join(STATE)).unwrap();
    fs::create_dir(path.join(STATE)).unwrap();
    assert!(error(&path).contains("it is not a file"), "{}", error(&path));
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    assert!(error(&path).contains("others can write to it"), "{}", error(&path));
    assert!(
        check(Path::new("/proc/self"), &fs::metadata("/").unwrap()).is_ok() == (sys::effective_user() == 0)
    );
}

#[test]
fn the_least_recently_used_templates_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store { path: folder.path().to_owned(), limit: 4 << 20 };
    let name = |number: u64| format!("{number:016x}");
    let used = |number: u64, age: u64| {
        let time = SystemTime::now() - Duration::from_secs(age);
        File::open(store.path.join(name(number))).unwrap().set_modified(time).unwrap();
    };
    let write = |number: u64, age: u64| {
        let path = store.path.join(name(number));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(MEMORY), vec![1; 1 << 20]).unwrap();
        used(number, age);
    };
    (0..4).for_each(|number| write(number, 100 - number));
    let locked = store.lock().unwrap();
    locked.make_room(1 << 20, &name(7)).unwrap();
    assert_eq!(store.names().unwrap(), [name(1), name(2), name(3)]);
    // The oldest is used again, and the next one is replaced.
    used(1, 0);
    locked.make_room(2 << 20, &name(2)).unwrap();
    assert_eq!(store.names().unwrap(), [name(1), name(2), name(3)]);
    locked.make_room(3 << 20, &name(2)).unwrap();
    assert_eq!(store.names().unwrap(), [name(1), name(2)]);
    let error = locked.make_room(5 << 20, &name(2)).unwrap_err().to_string();
    assert!(error.ends_with("a template of 5 MiB is larger than the limit of 4 MiB"), "{error}");
    assert_eq!(store.names().unwrap(), [name(1), name(2)]);
}

#[test]
fn the_last_use_is_noted_once_in_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let modified = || fs::metadata(folder.path()).unwrap().modified().unwrap();
    let set = |age| {
        let time = SystemTime::now() - age;
        File::open(folder.path()).unwrap().set_modified(time).unwrap();
        modified()
    };
    let lately = set(USED / 2);
    note_use(folder.path());
    assert_eq!(modified(), lately);
    let before = set(USED * 2);
    note_use(folder.path());
    assert!(modified() > before + USED);
}

#[test]
fn only_one_process_has_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store { path: folder.path().to_owned(), limit: 0 };
    let locked = store.try_lock().unwrap().unwrap();
    assert!(store.try_lock().unwrap().is_none());
    drop(locked);
    assert!(store.try_lock().unwrap().is_some());
}
