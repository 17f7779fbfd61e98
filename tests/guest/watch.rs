//! Prints the events of inotify(7) in a directory.

use std::mem::MaybeUninit;

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};

/// Watches `dir` and prints each event and its name, until the process is killed.
pub fn run(dir: &str) {
    let events = init(CreateFlags::CLOEXEC).expect("inotify_init1");
    let wanted = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::MODIFY;
    add_watch(&events, dir, wanted | WatchFlags::CLOSE_WRITE).expect("inotify_add_watch");
    // The server watches the directories in which names are looked up.
    let _ = std::fs::metadata(format!("{dir}/name"));
    println!("ready");
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(events, &mut buffer);
    loop {
        let event = reader.next().expect("read an event");
        let kinds = [
            (ReadFlags::CREATE, "create"),
            (ReadFlags::DELETE, "delete"),
            (ReadFlags::MOVED_FROM, "from"),
            (ReadFlags::MOVED_TO, "to"),
            (ReadFlags::MODIFY, "modify"),
            (ReadFlags::CLOSE_WRITE, "close"),
        ];
        let kind = kinds.iter().find(|(flag, _)| event.events().contains(*flag));
        let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
        println!("{} {}", kind.map_or("other", |(_, kind)| kind), name.unwrap_or_default());
    }
}
