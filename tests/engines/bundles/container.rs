//! Reports of what a container is made of: streams, devices, users, fields of config.json, mounts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use serde_json::{Value, json};
use tests::Bundle;

use super::Prints::{AsRunc, Exactly};
use super::{Report, plain, private_directory, report, tmpfs, user};

/// A bind of `source` with this type and these options.
fn bind(bundle: Bundle, source: &str, destination: &str, kind: Value, options: Value) -> Bundle {
    bundle.mount(json!({"destination": destination, "type": kind, "source": source, "options": options}))
}

/// Streams and other descriptors.
pub const DESCRIPTORS: &[Report] = &[
    report(
        "containers/crun 745",
        |b| user(b, json!({"uid": 100, "gid": 101})),
        "wc -c </dev/stdin; echo to >/dev/stdout",
        Exactly("0\nto"),
    ),
    report(
        "google/gvisor 8921",
        plain,
        "chown 1000:1000 /dev/stdin /dev/stdout && stat -L -c %u:%g /dev/stdin /dev/stdout",
        Exactly("1000:1000\n1000:1000"),
    ),
    report(
        "kata-containers/kata-containers 480",
        plain,
        "ls /proc/self/fd; echo; ls /proc/1/fd; true",
        Exactly("0\n1\n2\n3\n\n0\n1\n2"),
    ),
    report("kata-containers/runtime 1659", plain, "cat; echo end", Exactly("end")),
    report(
        "opencontainers/runc 4475",
        plain,
        "stat -L -c '%F %a' /dev/stdin /dev/stdout; stat -c %a /proc/self/fd",
        AsRunc,
    ),
    report(
        "/dev/fd and its like",
        plain,
        "cd /dev; for f in fd stdin stdout stderr ptmx; do readlink $f; done",
        Exactly("/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx"),
    ),
];

/// A device of `linux.devices` that is allowed.
fn device(bundle: Bundle, device: Value) -> Bundle {
    bundle.with(|c| {
        let rule = json!({"allow": true, "type": device["type"], "major": device["major"], "minor": device["minor"], "access": "rwm"});
        c["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}, rule]);
        c["linux"]["devices"] = json!([device]);
    })
}

/// Device nodes.
pub const DEVICES: &[Report] = &[
    report(
        "newsnowlabs/runcvm 10",
        plain,
        "stat -c '%n %a %u %g %t:%T' $(find /dev -type c | grep -v pts | sort)",
        AsRunc,
    ),
    report(
        "opencontainers/runc 1115",
        |b| device(b, json!({"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11})),
        "stat -c '%a %u:%g %t:%T' /dev/kmsg",
        AsRunc,
    ),
    report(
        "opencontainers/runc 2574",
        |b| {
            device(
                b,
                json!({"path": "/dev/deep/mynull", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6}),
            )
        },
        "stat -c '%a %u:%g' /dev/deep/mynull; wc -c </dev/deep/mynull",
        Exactly("640 5:6\n0"),
    ),
    report(
        "opencontainers/runc 5073, containers/crun 941",
        plain,
        "mknod /dev/made c 12 42 && echo made; cat /dev/made 2>&1",
        Exactly("made\ncat: can't open '/dev/made': Operation not permitted"),
    ),
    report(
        "opencontainers/runc 1359",
        |b| {
            device(
                user(b, json!({"uid": 1000, "gid": 1000, "umask": 0o77})),
                json!({"path": "/dev/mynull", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666}),
            )
        },
        "umask; stat -c %a /dev/mynull /dev/null; touch /dev/shm/f; stat -c %a /dev/shm/f",
        Exactly("0077\n666\n666\n600"),
    ),
    report(
        "runtime-spec's default devices",
        plain,
        "head -c 2 /dev/urandom | wc -c; head -c 2 /dev/zero | wc -c; echo x >/dev/full || echo full",
        Exactly("2\n2\nfull"),
    ),
    report(
        "kubernetes/kubernetes 7890",
        |b| device(b, json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229})),
        "test -c /dev/fuse && : <>/dev/fuse && echo opened",
        Exactly("opened"),
    ),
];

/// Users, groups and rights.
pub const USERS: &[Report] = &[
    report(
        "youki-dev/youki 680",
        |b| user(b, json!({"uid": 1000, "gid": 1000})),
        "echo $HOME",
        Exactly("/home/ann"),
    ),
    report(
        "youki-dev/youki 680, of an unknown user",
        |b| user(b, json!({"uid": 4242, "gid": 0})),
        "echo $HOME; id -u",
        Exactly("/\n4242"),
    ),
    report(
        "youki-dev/youki 3018",
        |b| user(b, json!({"uid": 0, "gid": 0, "additionalGids": [10, 10, 5]})),
        "grep Groups /proc/self/status",
        AsRunc,
    ),
    report(
        "opencontainers/runc 2712",
        |b| {
            private_directory(&b);
            user(b, json!({"uid": 1000, "gid": 1000})).with(|c| c["process"]["cwd"] = json!("/private"))
        },
        "pwd",
        Exactly("/private"),
    ),
    report(
        "opencontainers/runc 2894, GoogleContainerTools/distroless 718",
        |b| {
            private_directory(&b);
            user(b, json!({"uid": 4242, "gid": 4242})).with(|c| c["process"]["cwd"] = json!("/private"))
        },
        "ls . 2>/dev/null || echo closed",
        Exactly("closed"),
    ),
    report(
        "opencontainers/runc 1712",
        |b| b.with(|c| c["process"]["cwd"] = json!("/made/for/it")),
        "pwd; stat -c '%a %u' .",
        Exactly("/made/for/it\n755 0"),
    ),
    report(
        "capabilities of a user",
        |b| b.with(|c| c["process"]["user"] = json!({"uid": 1000, "gid": 1000})),
        "grep Cap /proc/self/status",
        AsRunc,
    ),
    report(
        "ambient capabilities of a user",
        |b| {
            b.with(|c| {
                c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
                for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
                    c["process"]["capabilities"][set] = json!(["CAP_NET_BIND_SERVICE", "CAP_KILL"]);
                }
            })
        },
        "grep Cap /proc/self/status",
        AsRunc,
    ),
    report(
        "no new privileges, score, umask",
        |b| b.with(|c| c["process"]["oomScoreAdj"] = json!(321)),
        "grep NoNewPrivs /proc/self/status; cat /proc/self/oom_score_adj; umask",
        Exactly("NoNewPrivs:\t1\n321\n0022"),
    ),
    report(
        "user namespaces",
        |b| {
            b.with(|c| {
                c["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
                let all = json!([{"containerID": 0, "hostID": 0, "size": 70_000}]);
                c["linux"]["uidMappings"] = all.clone();
                c["linux"]["gidMappings"] = all;
            })
        },
        "tr -s ' ' </proc/self/uid_map; cat /proc/self/setgroups; id -u; stat -c %u /proc/self",
        AsRunc,
    ),
];

/// Fields of config.json.
pub const FIELDS: &[Report] = &[
    report(
        "opencontainers/runc 1848 and other fields that are null",
        |b| {
            b.with(|c| {
                for field in ["capabilities", "rlimits", "apparmorProfile", "oomScoreAdj", "consoleSize"] {
                    c["process"][field] = Value::Null;
                }
                for field in ["resources", "devices", "seccomp", "sysctl", "maskedPaths", "readonlyPaths"] {
                    c["linux"][field] = Value::Null;
                }
            })
        },
        "grep CapEff /proc/self/status",
        Exactly("CapEff:\t0000000000000000"),
    ),
    report(
        "environment",
        |b| b.with(|c| c["process"]["env"] = json!(["PATH=/bin", "EMPTY=", "EQUALS=a=b", "LINES=one\ntwo"])),
        "env | grep -v -e PWD -e SHLVL",
        AsRunc,
    ),
    report(
        "a program by its path below the directory",
        |b| b.with(|c| c["process"]["args"] = json!(["./bin/busybox", "echo", "ran"])),
        "",
        Exactly("ran"),
    ),
    report(
        "words that are empty",
        |b| b.with(|c| c["process"]["args"] = json!(["sh", "-c", "echo $#:$1:$2", "name", "", "two words"])),
        "",
        Exactly("2::two words"),
    ),
    report(
        "runtime-spec: user.username",
        |b| user(b, json!({"uid": 0, "gid": 0, "username": "nobody"})),
        "id -u",
        Exactly("0"),
    ),
    report(
        "opencontainers/runtime-spec 982",
        |b| {
            b.with(|c| {
                c["linux"]["maskedPaths"] =
                    json!(["/proc/latency_stats", "/no/such/path", "/etc/passwd", "/root"]);
                c["linux"]["readonlyPaths"] = json!(["/no/such/path", "/tmp"]);
            })
        },
        "wc -c </etc/passwd; ls /root; touch /root/f /tmp/f 2>&1",
        AsRunc,
    ),
    report(
        "a root with an absolute path",
        |b| {
            let rootfs = b.rootfs();
            b.with(|c| c["root"]["path"] = json!(format!("{}/", rootfs.display())))
        },
        "echo ran",
        Exactly("ran"),
    ),
    report(
        "hostname",
        |b| b.with(|c| c["hostname"] = json!("a.long.name.of-a-host")),
        "hostname; cat /proc/sys/kernel/hostname",
        Exactly("a.long.name.of-a-host\na.long.name.of-a-host"),
    ),
    report(
        "seccomp",
        |b| {
            b.with(|c| c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}))
        },
        "mkdir /tmp/d 2>&1; grep Seccomp: /proc/self/status",
        AsRunc,
    ),
    report(
        "annotations",
        |b| b.with(|c| c["annotations"] = json!({"": "", "a": "", "run.oci.x": "y"})),
        "echo ran",
        Exactly("ran"),
    ),
];

/// Mounts.
pub const MOUNTS: &[Report] = &[
    report(
        "google/gvisor 11736",
        |b| bind(b, "/etc", "/ddd", Value::Null, json!(["rbind", "rw"])),
        "test -e /ddd/passwd && echo bound",
        Exactly("bound"),
    ),
    report(
        "sylabs/singularity 2042",
        |b| bind(b, "/etc/passwd", "/the/file", json!("none"), json!(["bind", "ro"])),
        "test -s /the/file && echo file; echo x 2>/dev/null >/the/file || echo read-only",
        Exactly("file\nread-only"),
    ),
    report(
        "opencontainers/runc 1732",
        |b| {
            fs::create_dir(b.path().join("data")).expect("create a directory");
            fs::write(b.path().join("data/f"), "of the bundle\n").expect("write a file");
            bind(b, "data", "/data", json!("bind"), json!(["bind"]))
        },
        "cat /data/f",
        Exactly("of the bundle"),
    ),
    report(
        "google/gvisor 10944",
        |b| b.mount(json!({"destination": "/tmp/proc", "type": "proc", "source": "proc"})),
        "cat /tmp/proc/self/comm /tmp/proc/1/comm; true",
        Exactly("cat\nsh"),
    ),
    report(
        "containers/crun 1331, podman-container-tools/podman 20754",
        |b| {
            let path = b.rootfs().join("tmp/kept");
            fs::create_dir(&path).expect("create a directory");
            chown(&path, Some(5), Some(6)).expect("change the owner");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o2750)).expect("change the mode");
            tmpfs(tmpfs(b, "/tmp/kept", Value::Null), "/new", json!(["nosuid"]))
        },
        "stat -c '%a %u:%g' /tmp/kept /new",
        AsRunc,
    ),
    report(
        "systemd/systemd 22889: options of a tmpfs",
        |b| tmpfs(b, "/t", json!(["mode=0710", "uid=1000", "gid=1001", "size=64k", "nr_inodes=10"])),
        "stat -c '%a %u:%g' /t; df -k /t | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2",
        Exactly("710 1000:1001\n64"),
    ),
    report(
        "opencontainers/runc 845",
        |b| tmpfs(b, "/etc", json!(["tmpcopyup", "mode=755"])),
        "cd /etc; stat -c '%n %a %u:%g' * | sort; touch new",
        AsRunc,
    ),
    report(
        "a destination behind a link",
        |b| {
            symlink("/tmp", b.rootfs().join("link")).expect("create a link");
            tmpfs(b, "/link/deep", json!(["size=64k"]))
        },
        "grep -c ' /tmp/deep tmpfs' /proc/mounts",
        Exactly("1"),
    ),
    report(
        "mounts as they are listed",
        plain,
        "grep -v -e ' / ' -e cgroup -e ' /proc/' -e ' /sys/' /proc/mounts | cut -d ' ' -f 2-4 | sed 's/,inode64//; s/,size=[0-9]*k//'",
        AsRunc,
    ),
    report(
        "google/gvisor 1906",
        plain,
        "cat /proc/self/cgroup; grep cgroup /proc/mounts | cut -d ' ' -f 1-3",
        AsRunc,
    ),
    report("propagation", plain, "grep -c -e shared: -e master: /proc/self/mountinfo || :", Exactly("0")),
];
