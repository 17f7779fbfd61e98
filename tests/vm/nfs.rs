//! A volume on NFS, whose server takes root for nobody (root_squash). Server and client are those of the host's kernel.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, check_output};

/// The user in the containers.
const USER: u32 = 1000;

/// Starts the server for one directory, with what exportfs(8) and mountd(8) would tell the kernel: the client 127.0.0.1 is in
/// the domain `*`, and the root of version 4 (fsid 0) is the directory. The flags are insecure_port, rootsquash, async,
/// nosubtreecheck and fsid (nfsd's export.h); nobody is 65534. Nobody has to recover locks, so there is no grace period.
const SERVE: &str = "set -e; modprobe -a nfsd nfsv4; \
    mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd; cd /proc/fs/nfsd; \
    echo -2 -3 +4 +4.1 +4.2 > versions; echo $3 > nfsv4recoverydir; echo 10 > nfsv4leasetime; echo 10 > nfsv4gracetime; \
    echo 'tcp 2049' > portlist; echo 2 > threads; echo Y > v4_end_grace; \
    cd /proc/net/rpc; echo 'nfsd 127.0.0.1 2147483647 *' > auth.unix.ip/channel; \
    echo \"* $1 2147483647 9238 65534 65534 0\" > nfsd.export/channel; \
    echo \"* 1 \\\\x00000000 2147483647 $1\" > nfsd.fh/channel; \
    mount -i -t nfs4 -o addr=127.0.0.1,clientaddr=127.0.0.1,vers=4.2,port=2049,sec=sys 127.0.0.1:/ $2";

const END: &str = "umount -l $2; echo 0 > /proc/fs/nfsd/threads; cd /proc/net/rpc; \
    for cache in nfsd.fh nfsd.export auth.unix.ip; do date +%s > $cache/flush; done; sync";

/// An ext4 file system, exported and mounted as NFS.
struct Export(TempDir);

impl Export {
    fn new() -> Export {
        let export = Export(TempDir::new().unwrap());
        let path = |name| export.0.path().join(name);
        // Without a directory to recover clients from, the server refuses to end its grace period.
        for name in ["disk", "nfs", "recovery"] {
            fs::create_dir(path(name)).unwrap();
        }
        check_output(Command::new("truncate").args(["-s", "16M"]).arg(path("image")));
        check_output(Command::new("mkfs.ext4").arg("-q").arg(path("image")));
        check_output(Command::new("mount").args(["-o", "loop"]).arg(path("image")).arg(path("disk")));
        for (name, owner, mode) in [("home", USER, 0o700), ("open", 0, 0o1777), ("own", 0, 0o700)] {
            let dir = path("disk").join(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("file"), format!("of {owner}\n")).unwrap();
            fs::set_permissions(dir.join("file"), Permissions::from_mode(0o600)).unwrap();
            fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
            chown(dir.join("file"), Some(owner), Some(owner)).unwrap();
            chown(&dir, Some(owner), Some(owner)).unwrap();
        }
        export.shell(SERVE);
        export
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("nfs")
    }

    fn shell(&self, script: &str) {
        let mut command = Command::new("bash");
        let paths = ["disk", "nfs", "recovery"].map(|name| self.0.path().join(name));
        check_output(command.args(["-c", script, "bash"]).args(paths));
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let arguments = [self.0.path().join("disk"), self.path()];
        let _ = Command::new("bash").args(["-c", END, "bash"]).args(&arguments).status();
        let _ = Command::new("umount").arg("-l").arg(&arguments[0]).status();
    }
}

/// Runs a script as a user on the host and in a machine. The two must print the same.
#[track_caller]
fn check(export: &Export, user: u32, script: &str) -> String {
    let id = user.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "/bin/busybox", "sh", "-c", script]);
    let expected = check_output(command.current_dir(export.path()));
    let options = ["rbind", "rw"];
    let run = Bundle::sh(script)
        .mount(json!({"destination": "/v", "type": "bind", "source": export.path(), "options": options}))
        .with(|c| c["process"]["cwd"] = json!("/v"))
        .with(|c| c["process"]["user"] = json!({"uid": user, "gid": user}))
        .run();
    assert_eq!(run.text().trim(), expected.trim(), "{run}");
    expected
}

/// One test, because the host has one server.
#[test]
fn users_have_their_rights_on_nfs_where_root_has_none() {
    let export = Export::new();
    // A user's own directory, which others may not enter, used in every way and left as it was.
    let script = "cd home; for n in 1 2; do cat file; echo new > new; cat new; echo more >> file; tail -n 1 file; mkdir d; \
        mv new d; ls d; chmod 640 file; stat -c '%a %u %g' . file d d/new; ln -s file link; cat link | head -n 1; \
        ln file hard; stat -c %h file; touch -d @1000000 file; stat -c %Y file; echo cut > file; truncate -s 2 file; \
        wc -c < file; rm -r d link hard; echo of 1000 > file; chmod 600 file; done; ls; umask 027; mkfifo p; stat -c %a p; rm p";
    assert!(check(&export, USER, script).starts_with("of 1000\n"));
    // Root is nobody.
    let script = "cat home/file own/file 2>&1 | grep -c denied; ls own 2>&1 | grep -c denied; echo x > open/new; \
        stat -c '%u %a' open/new; cat open/new; rm open/new";
    assert_eq!(check(&export, 0, script), "2\n1\n65534 644\nx\n");
    // A removed file has another name as long as it is open, and no longer.
    let script = "cd home; mkdir e; echo text > e/f; cat e/f; rm e/f; rmdir e && echo removed; \
        mkdir e; echo text > e/f; exec 3< e/f; rm e/f; cat <&3; exec 3<&-; rmdir e && echo removed";
    assert_eq!(check(&export, USER, script), "text\nremoved\ntext\nremoved\n");
    assert!(!Path::new(&export.path()).join("home/e").exists());
}
