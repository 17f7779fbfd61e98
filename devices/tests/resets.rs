//! Ten thousand resets and starts of each device leak no file descriptors, threads or memory.
//!
//! This is one test in its own process, because it counts the resources of the process.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::{Duration, Instant};

use devices::EventLoop;
use devices::share::{ShareTree, Terms};
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::Balloon;
use devices::virtio::console::{Console, LogPort, Port};
use devices::virtio::driver::Driver;
use devices::virtio::fs::{Fs, server};
use devices::virtio::net::{Net, Slot, Tap, Vhost};
use devices::virtio::p9::{self, P9};
use devices::virtio::rng::Rng;

const ROUNDS: usize = 10_000;
/// Rounds before the first count, in which allocators and tables grow to their final size.
const WARM_UP: usize = 500;
/// Permitted growth of the process, in pages. A leak of a hundred bytes per round would be more.
const SLACK_PAGES: usize = 240;
const DEADLINE: Duration = Duration::from_secs(60);

const STATUS: u32 = 0x70;
const NEEDS_RESET: u32 = 64;
const FEATURES_OK: u32 = 8;
const DRIVER_OK: u32 = 4;

/// Numbers of file descriptors, threads and pages of this process.
#[derive(Clone, Copy, Debug)]
struct Count {
    descriptors: usize,
    threads: usize,
    pages: usize,
}

impl Count {
    fn now() -> Count {
        let entries = |path| fs::read_dir(path).unwrap().count();
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        Count {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            pages: statm.split(' ').nth(1).unwrap().parse().unwrap(),
        }
    }
}

/// How the driver starts the device in a round.
#[derive(Clone, Copy, Debug)]
enum StartMode {
    /// Correctly, with all queues.
    Whole,
    /// Without any queue that is ready, so that no kick can wake the device.
    NoQueues,
}

/// Resets and starts the device once. Returns whether the device started.
fn round(driver: &mut Driver, start: StartMode) -> bool {
    driver.write(STATUS, 0);
    let deadline = Instant::now() + DEADLINE;
    while driver.status() != 0 {
        assert!(Instant::now() < deadline, "the reset does not end");
        thread::yield_now();
    }
    match start {
        StartMode::Whole => drop(driver.start(u64::MAX)),
        StartMode::NoQueues => {
            driver.negotiate(u64::MAX);
            assert_ne!(driver.status() & FEATURES_OK, 0);
            driver.add_status(DRIVER_OK);
        }
    }
    driver.kick(0);
    driver.status() & NEEDS_RESET == 0
}

/// Drives a device and compares the resources of the process before and afterwards. With `often` it runs until the
/// device has started in every round; without, each round tries to start the device once.
fn drive(name: &str, device: Box<dyn VirtioDevice>, often: bool) {
    let mut driver = Driver::new(device);
    let mut refused = 0;
    let mut rounds = |count: usize| {
        let deadline = Instant::now() + DEADLINE;
        for number in 0..count {
            let start = if number % 2 == 0 { StartMode::NoQueues } else { StartMode::Whole };
            while !round(&mut driver, start) {
                refused += 1;
                if !often {
                    break;
                }
                // The loop has not yet dropped earlier subscribers.
                assert!(Instant::now() < deadline, "{name}: the device refuses to start");
                thread::yield_now();
            }
        }
    };
    rounds(WARM_UP);
    let before = Count::now();
    rounds(ROUNDS);
    let after = Count::now();
    println!("{name}: {refused} starts refused, {before:?}, {after:?}");
    assert_eq!(after.descriptors, before.descriptors, "{name}");
    assert_eq!(after.threads, before.threads, "{name}");
    assert!(after.pages <= before.pages + SLACK_PAGES, "{name}: {before:?} {after:?}");
}

fn net(events: &EventLoop, vhost: Option<Vhost>) -> (Net, UnixDatagram) {
    let (wire, tap) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    (Net::new(events.handle(), Tap::of_socket(OwnedFd::from(tap)), [2; 6], 1500, vhost), wire)
}

#[test]
fn ten_thousand_drivers_leave_nothing_behind() {
    let events = EventLoop::start("devices", || {}).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tree = ShareTree::new().unwrap();
    tree.bind("/a", File::open(dir.path()).unwrap().into(), Terms::default()).unwrap();

    drive("rng", Box::new(Rng::new(events.handle())), true);
    drive("balloon", Box::new(Balloon::new(events.handle(), |_| Ok(()))), true);

    let (device, _wire) = net(&events, None);
    drive("net", Box::new(device), true);

    let (vhost, _fault) = Vhost::of_idler().unwrap();
    let (device, _wire) = net(&events, Some(vhost));
    drive("lent net", Box::new(device), true);

    let slot = Slot::default();
    let (device, _wire) = net(&events, None);
    slot.plug(device);
    drive("place", Box::new(slot), true);

    let ports = (0..4)
        .map(|n| Port { name: (n > 0).then(|| n.to_string()), backend: Box::new(LogPort::new(None).0) as _ });
    // A console's ports can be started only once; later starts are refused.
    drive("console", Box::new(Console::new(events.handle(), ports.collect())), false);

    drive("fs", Box::new(Fs::new("share", server(&tree), || {}).unwrap()), true);
    drive("9p", Box::new(P9::new("share", p9::server(&tree), || {}).unwrap()), true);
}
