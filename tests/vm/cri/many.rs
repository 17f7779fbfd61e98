//! Many pods at the same time, on a host with fewer CPUs than machines that boot.

use std::thread;

use serde_json::json;

use super::{CONTAINER, Pod, SANDBOX, SERVER};
use crate::lifecycle::reap;

/// Number of pods that start together.
const PODS: usize = 20;
/// Gets the server's page, and ends.
const VISITOR: &str = "until wget -q -O - http://127.0.0.1/; do sleep 1; done; exit 5";

impl Pod {
    /// Runs the pod from its sandbox to its removal. It only waits for ends of processes, its sandbox does nothing, and its
    /// kernel is the smaller one, so that twenty boot soon.
    #[track_caller]
    fn live(mut self) {
        let sandbox = self.bundle(SANDBOX, "sandbox", Some("exec sleep 1000000"));
        let sandbox = self.run("sandbox", sandbox.with(|c| c["annotations"]["vmm.kernel"] = json!("base")));
        self.process = sandbox.as_raw_nonzero().get();
        let [server, visitor] = [("server", SERVER), ("visitor", VISITOR)]
            .map(|(id, script)| self.run(id, self.bundle(CONTAINER, id, Some(script))));
        assert_eq!((reap(visitor), self.engine.read("visitor.out")), (Ok(5), "hello\n".to_owned()));
        self.engine.out(&["kill", "sandbox", "KILL"]);
        assert_eq!((reap(sandbox), reap(server)), (Ok(137), Ok(137)));
        for id in ["visitor", "server", "sandbox"] {
            self.engine.out(&["delete", id]);
        }
        assert!(self.engine.state.names().is_empty());
        assert_eq!(self.nets.traces(), "");
    }
}

#[test]
fn twenty_pods_of_two_containers_at_once_lose_nothing() {
    let pods: Vec<Pod> = (0..PODS).map(|_| Pod::new()).collect();
    thread::scope(|scope| {
        let running: Vec<_> = pods.into_iter().map(|pod| scope.spawn(|| pod.live())).collect();
        let lost = running.into_iter().filter_map(|pod| pod.join().err()).count();
        assert_eq!(lost, 0, "of {PODS} pods");
    });
}
