//! Popular programs, from Debian's packages.

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::images;
use crate::parameter::HostParameter;

pub const CASES: &[Case] = &[
    case!(nginx_serves_through_a_published_port),
    case!(redis_on_a_volume_under_its_own_benchmark),
    case!(redis_has_no_warning_on_a_host_that_is_set_up_for_it),
    case!(postgres_on_a_volume_under_its_own_benchmark),
    case!(apt_installs_a_package),
    case!(gcc_compiles),
    case!(python_with_threads),
    case!(web_app_with_signals_and_restarts),
    case!(program_with_many_mappings),
    case!(memory_policies_of_one_node),
];

fn nginx_serves_through_a_published_port(engine: &Engine) {
    images::import_programs(engine);
    let script = "echo from nginx >/var/www/html/index.html; nginx -g 'daemon off;' & \
                  until wget -q -O /dev/null http://127.0.0.1/; do :; done; echo ready; wait";
    engine.start_container("nginx", &["-p", "127.0.0.1:8766:80", "programs", "sh", "-c", script], "ready");
    assert!(crate::network::fetch("8766").ends_with("from nginx\n"));
    engine.ok(&["stop", "-t", "1", "nginx"]);
}

fn redis_on_a_volume_under_its_own_benchmark(engine: &Engine) {
    images::import_programs(engine);
    let server = ["-v", "redis:/data", "-w", "/data", "programs", "redis-server", "--appendonly", "yes"];
    engine.start_container("redis", &server, "Ready to accept connections");
    let report =
        engine.ok(&["exec", "redis", "redis-benchmark", "-q", "-n", "500", "-t", "set,get", "--csv"]);
    assert!(report.contains("\"GET\""), "{report}");
    engine.ok(&["exec", "redis", "redis-cli", "set", "key", "kept"]);
    engine.ok(&["restart", "redis"]);
    // The log already has the line of the first start. Until redis is ready again it does not answer, or reports
    // LOADING.
    let get = || engine.run(&["exec", "redis", "redis-cli", "get", "key"]);
    let mut value = get();
    while !value.status.success() || value.text().starts_with("LOADING ") {
        value = get();
    }
    assert_eq!(value.text(), "kept");
    engine.ok(&["rm", "-f", "redis"]);
    engine.ok(&["volume", "rm", "redis"]);
}

fn redis_has_no_warning_on_a_host_that_is_set_up_for_it(engine: &Engine) {
    images::import_programs(engine);
    // Redis tells others that background saves may fail.
    let _set = HostParameter::set("vm/overcommit_memory", "1");
    engine.start_container("quiet", &["programs", "redis-server"], "Ready to accept connections");
    let log = engine.ok(&["logs", "quiet"]);
    assert!(!log.contains("WARNING"), "{log}");
}

fn postgres_on_a_volume_under_its_own_benchmark(engine: &Engine) {
    images::import_programs(engine);
    let script = "chown postgres /data; echo ready; exec sleep 100000";
    let flags = ["-v", "postgres:/data", "-m", "512m", "programs", "sh", "-c", script];
    engine.start_container("postgres", &flags, "ready");
    // Each step is a command of its own, because an emulated host is slow and a command has a deadline.
    let inner = |script: &str| {
        let script = format!("PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); {script}");
        engine.ok(&["exec", "-u", "postgres", "-w", "/tmp", "postgres", "sh", "-ec", &script])
    };
    inner("initdb -D /data/db >/dev/null");
    inner("pg_ctl -D /data/db -w -o '-k /tmp' -l /tmp/log start >/dev/null");
    inner("createdb -h /tmp bench; pgbench -h /tmp -i -s 1 bench 2>/dev/null");
    let text = inner("pgbench -h /tmp -c 2 -t 20 bench 2>/dev/null");
    assert!(text.contains("number of transactions actually processed: 40/40"), "{text}");
    inner("pg_ctl -D /data/db -w stop >/dev/null");
    let state = inner("pg_controldata /data/db | grep 'cluster state'");
    assert!(state.ends_with(" shut down"), "{state}");
    engine.ok(&["rm", "-f", "postgres"]);
    engine.ok(&["volume", "rm", "postgres"]);
}

fn apt_installs_a_package(engine: &Engine) {
    images::import_programs(engine);
    // A local package source with a package that is a file of the image.
    let script = "set -e; cd /srv/packages; dpkg-scanpackages -m . >Packages 2>/dev/null; \
        echo 'deb [trusted=yes] file:/srv/packages ./' >/etc/apt/sources.list; rm -f /etc/apt/sources.list.d/*; \
        apt-get -qq update; apt-get -qq -y install hello >/dev/null 2>&1; hello";
    assert_eq!(engine.ok(&["run", "--rm", "programs", "sh", "-c", script]), "Hello, world!");
}

fn gcc_compiles(engine: &Engine) {
    images::import_programs(engine);
    let script = "cd /tmp && echo '#include <stdio.h>\nint main(void) { puts(\"compiled\"); return 7; }' >a.c && \
        gcc -O2 -o a a.c && ./a";
    engine.run(&["run", "--rm", "-m", "512m", "programs", "sh", "-c", script]).code(7).stdout("compiled\n");
}

fn python_with_threads(engine: &Engine) {
    images::import_programs(engine);
    let script = "import threading, hashlib\nout = []\n\
        def work(n): out.append(hashlib.sha256(bytes([n]) * 100000).hexdigest())\n\
        all = [threading.Thread(target=work, args=(n,)) for n in range(8)]\n\
        [t.start() for t in all]; [t.join() for t in all]\nprint(len(set(out)))";
    assert_eq!(engine.ok(&["run", "--rm", "programs", "python3", "-c", script]), "8");
}

fn web_app_with_signals_and_restarts(engine: &Engine) {
    images::import_programs(engine);
    let script = "import http.server, signal, sys, threading\n\
        words = ['first']\n\
        class App(http.server.BaseHTTPRequestHandler):\n\
        \x20def do_GET(self):\n\
        \x20 self.send_response(200); self.end_headers(); self.wfile.write((words[-1] + '\\n').encode())\n\
        \x20def log_message(self, *_): pass\n\
        server = http.server.ThreadingHTTPServer(('', 80), App)\n\
        signal.signal(signal.SIGHUP, lambda *_: (words.append('reloaded'), print('reloaded', flush=True)))\n\
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())\n\
        print('ready', flush=True)\n\
        server.serve_forever()\nsys.exit(0)";
    engine.start_container("app", &["-p", "127.0.0.1:8767:80", "programs", "python3", "-c", script], "ready");
    assert!(crate::network::fetch("8767").ends_with("first\n"));
    engine.ok(&["kill", "-s", "HUP", "app"]);
    engine.wait_log("app", "reloaded");
    assert!(crate::network::fetch("8767").ends_with("reloaded\n"));
    engine.ok(&["restart", "app"]);
    engine.wait_log("app", "ready\nreloaded\nready");
    assert!(crate::network::fetch("8767").ends_with("first\n"));
    engine.ok(&["stop", "app"]);
    assert_eq!(engine.inspect("app", ".State.ExitCode"), "0");
}

fn program_with_many_mappings(engine: &Engine) {
    images::import_programs(engine);
    // Elasticsearch and others ask for as many.
    let _set = HostParameter::set("vm/max_map_count", "262144");
    // Neighbours with other rights do not merge.
    let script = "import mmap\nkept = [mmap.mmap(-1, 4096, prot=1 + 2 * (n % 2)) for n in range(100000)]\nprint(len(kept))";
    assert_eq!(engine.ok(&["run", "--rm", "programs", "python3", "-c", script]), "100000");
}

fn memory_policies_of_one_node(engine: &Engine) {
    images::import_programs(engine);
    // Databases under numactl(8) set a policy; Docker's filter allows it with CAP_SYS_NICE. MPOL_INTERLEAVE is 3.
    let script = "import ctypes, os\nlib = ctypes.CDLL(None)\nnode, mode = ctypes.c_ulong(1), ctypes.c_int(-1)\n\
        print(lib.syscall(238, 3, ctypes.byref(node), 64), lib.syscall(239, ctypes.byref(mode), None, 0, None, 0), mode.value)\n\
        print(sorted(name for name in os.listdir('/sys/devices/system/node') if name.startswith('node')))\n\
        print('N0=' in open('/proc/self/numa_maps').read())";
    let words = ["run", "--rm", "--cap-add", "SYS_NICE", "programs", "python3", "-c", script];
    assert_eq!(engine.ok(&words), "0 0 3\n['node0']\nTrue");
}
