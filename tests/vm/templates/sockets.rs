//! Sockets in a shared directory of a machine that continues from a template.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, Running};

use super::Templates;

#[test]
fn sockets_of_a_volume_join_the_pod_and_the_host() {
    let templates = Templates::one();
    let volume = TempDir::new().unwrap();
    let listener = UnixListener::bind(volume.path().join("host")).unwrap();
    let bundle = Bundle::sh("/bin/guest serve /v/s answer 1; /bin/guest socket /v/host ask question").mount(
        json!({"destination": "/v", "type": "bind", "source": volume.path(), "options": ["rbind", "rw"]}),
    );
    bundle.copy_guest_program();
    let mut command = bundle.command();
    command.envs(templates.env("require"));
    let mut running = Running::start(command);
    running.wait_for("ready\n");
    let mut client = UnixStream::connect(volume.path().join("s")).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer to ");
    let mut server = listener.accept().unwrap().0;
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer to question");
    server.write_all(b"answer").unwrap();
    drop(server);
    running.finish().code(0).stdout(" from 0 0\nanswer\n");
}
