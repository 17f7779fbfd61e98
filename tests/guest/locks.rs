// UNSAFETY: locks of ranges and handlers of signals, for which the standard library and rustix have no functions.
//! A process that locks a file as it is told: `guest locks FILE`. It runs in containers and on the host.
//!
//! Each line of standard input is a command, and each command has one line as its answer:
//!
//! | command | effect |
//! |---|---|
//! | `open FD r/rw` | opens the file |
//! | `close FD`, `dup FD TO` | |
//! | `lock FD posix/ofd try/wait r/w/u START LEN` | sets or waits for the lock of a range, or unlocks it |
//! | `test FD posix/ofd r/w START LEN` | says which lock is in the way |
//! | `flock FD try/wait r/w/u` | flock(2) |
//! | `increment FD COUNT` | adds 1 to the number in the file so often, with a lock each time |
//! | `append COUNT LINE` | appends lines |
//! | `spawn NAME` | starts such a process, which has this one's descriptors |
//! | `NAME: COMMAND` | its answer to a command |
//! | `NAME& COMMAND` | gives a command and waits until the process sleeps in a system call of locks |
//! | `NAME?` | its answer to that command |
//! | `kill NAME SIGNAL` | |

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Numbers of fcntl(2) and flock(2).
const SYSTEM_CALLS: [&str; 2] = ["72", "73"];
/// Limit of the time in which a process goes to sleep.
const DEADLINE: Duration = Duration::from_secs(20);

type Answer = Result<String, std::io::Error>;

/// Another process, and its answers.
struct Other(Child, BufReader<ChildStdout>);

impl Other {
    fn tell(&mut self, command: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn wait_until_it_waits(&self) {
        let path = format!("/proc/{}/syscall", self.0.id());
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(&path).unwrap();
            if text.split(' ').next().is_some_and(|number| SYSTEM_CALLS.contains(&number)) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "the process does not wait: {text}");
            std::thread::yield_now();
        }
    }
}

pub fn run(path: &str) {
    // A signal without effect, which interrupts a system call.
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: zero is a valid sigaction, and the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
    let mut others = HashMap::new();
    for line in std::io::stdin().lines() {
        let answer = serve(path, &line.unwrap(), &mut others).unwrap_or_else(|error| {
            match error.raw_os_error().unwrap_or_default() {
                libc::EAGAIN => "EAGAIN".to_owned(),
                libc::EINTR => "EINTR".to_owned(),
                libc::EBADF => "EBADF".to_owned(),
                libc::EDEADLK => "EDEADLK".to_owned(),
                _ => error.to_string(),
            }
        });
        println!("{answer}");
    }
}

fn serve(path: &str, line: &str, others: &mut HashMap<String, Other>) -> Answer {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |at: usize| words[at].parse::<i64>().unwrap();
    let fd = |at: usize| number(at) as RawFd;
    match words[0] {
        "open" => {
            let file = OpenOptions::new().read(true).write(words[2] == "rw").open(path)?;
            duplicate(file.into_raw_fd(), fd(1))
        }
        // SAFETY: no pointers; a descriptor that only commands use.
        "close" => done(unsafe { libc::close(fd(1)) }),
        // SAFETY: no pointers.
        "dup" => done(unsafe { libc::dup2(fd(1), fd(2)) }),
        "lock" => {
            let command = match (words[2], words[3]) {
                ("posix", "try") => libc::F_SETLK,
                ("posix", _) => libc::F_SETLKW,
                (_, "try") => libc::F_OFD_SETLK,
                _ => libc::F_OFD_SETLKW,
            };
            range(fd(1), command, words[4], number(5), number(6)).map(|_| "ok".to_owned())
        }
        "test" => {
            let command = if words[2] == "posix" { libc::F_GETLK } else { libc::F_OFD_GETLK };
            range(fd(1), command, words[3], number(4), number(5))
        }
        "flock" => {
            let how = match words[3] {
                "r" => libc::LOCK_SH,
                "w" => libc::LOCK_EX,
                _ => libc::LOCK_UN,
            };
            let wait = if words[2] == "try" { libc::LOCK_NB } else { 0 };
            // SAFETY: no pointers.
            done(unsafe { libc::flock(fd(1), how | wait) })
        }
        "increment" => increment(path, number(2)),
        "append" => append(path, number(1), words[2]),
        "spawn" => {
            let mut command = Command::new("/proc/self/exe");
            let mut child =
                command.args(["locks", path]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let answers = BufReader::new(child.stdout.take().unwrap());
            others.insert(words[1].to_owned(), Other(child, answers));
            Ok("ok".to_owned())
        }
        "kill" => {
            let signal = if words[2] == "KILL" { libc::SIGKILL } else { libc::SIGUSR1 };
            let other = others.get_mut(words[1]).unwrap();
            // SAFETY: no pointers; a child that was not waited for.
            let result = unsafe { libc::kill(other.0.id() as i32, signal) };
            if signal == libc::SIGKILL {
                other.0.wait()?;
            }
            done(result)
        }
        to => {
            let other = others.get_mut(&to[..to.len() - 1]).unwrap();
            let command = line.split_once(' ').map_or("", |(_, command)| command);
            match to.as_bytes()[to.len() - 1] {
                b'&' => {
                    other.tell(command);
                    other.wait_until_it_waits();
                    Ok("waits".to_owned())
                }
                b':' => {
                    other.tell(command);
                    Ok(other.answer())
                }
                _ => Ok(other.answer()),
            }
        }
    }
}

/// Gives an open file the number `to`. Children inherit it.
fn duplicate(from: RawFd, to: RawFd) -> Answer {
    // SAFETY: no pointers; `from` is not used any more.
    unsafe {
        let result = libc::dup2(from, to);
        libc::close(from);
        done(result)
    }
}

fn done(result: i32) -> Answer {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok("ok".to_owned()) }
}

/// fcntl(2) with a range. Returns what it says of a lock that is in the way.
fn range(fd: RawFd, command: i32, kind: &str, start: i64, len: i64) -> Answer {
    let kind = match kind {
        "r" => libc::F_RDLCK,
        "w" => libc::F_WRLCK,
        _ => libc::F_UNLCK,
    };
    let mut lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the kernel reads and writes `lock`.
    done(unsafe { libc::fcntl(fd, command, &raw mut lock) })?;
    Ok(match i32::from(lock.l_type) {
        libc::F_RDLCK => format!("r {} {}", lock.l_start, lock.l_len),
        libc::F_WRLCK => format!("w {} {}", lock.l_start, lock.l_len),
        _ => "free".to_owned(),
    })
}

fn increment(path: &str, count: i64) -> Answer {
    let file: File = OpenOptions::new().read(true).write(true).open(path)?;
    for _ in 0..count {
        range(file.as_raw_fd(), libc::F_SETLKW, "w", 0, 0)?;
        let mut text = [0; 8];
        file.read_exact_at(&mut text, 0)?;
        let old: u64 = std::str::from_utf8(&text).unwrap().parse().unwrap();
        file.write_all_at(format!("{:08}", old + 1).as_bytes(), 0)?;
        range(file.as_raw_fd(), libc::F_SETLKW, "u", 0, 0)?;
    }
    Ok("ok".to_owned())
}

fn append(path: &str, count: i64, line: &str) -> Answer {
    for _ in 0..count {
        let mut file = OpenOptions::new().append(true).custom_flags(libc::O_CLOEXEC).open(path)?;
        file.write_all(format!("{line}\n").as_bytes())?;
    }
    Ok("ok".to_owned())
}
