//! Bounds: whatever comes in, memory stays small (4 MB at 110 pods is the budget).

/// Lines of evidence that a report carries.
pub const EVIDENCE: usize = 32;
/// API addresses: the kernel half watches at most 256.
pub const TARGETS: usize = 256;
/// Listeners on the host that are remembered.
pub const LISTENERS: usize = 4096;
/// Plugins whose last failure is remembered.
pub const PLUGINS: usize = 64;
/// Plugins that run at once: at 110 pods a node, with four networks each, all at once.
pub const RUNNING: usize = 512;
/// Names of processes whose lives are remembered, and processes of one name.
pub const LIVES: usize = 64;
/// How long an agent, a runtime or a node has to start: flanneld writes its file within two minutes of its start,
/// and the kubelet's first restarts of a pod fit in.
pub const SETTLE: u64 = 120 * SECOND;
/// The same for what serves others: a static pod is back within half a minute of a change of its manifest.
pub const RESTART: u64 = 30 * SECOND;
/// How long nobody must have seen the agent of a CNI before its configuration counts as left over: longer than
/// the kubelet's longest back-off, five minutes, twice.
pub const ORPHAN: u64 = 600 * SECOND;
/// How much later than its consequence a cause may have been seen: the longest that a failed connect counts.
pub const CAUSE_SEEN_LATE: u64 = CONNECT_FAILURE;
/// A sandbox that lived for less was removed because something after CNI failed: a pod of one UID gets a second sandbox
/// only when the first one is gone.
pub const GIVEN_UP: u64 = 60 * SECOND;
/// How long a sandbox must live at least to count as one that works: what fails after CNI (image, OCI runtime) fails
/// within seconds, or takes the same time again at the next try.
pub const SANDBOX_WORKS: u64 = 5 * SECOND;
/// How long a failed sandbox counts when its pod is not tried again: three times the longest wait of the kubelet, 15 s
/// (`backOffPeriod` 10 s with a jitter of one half, pkg/kubelet/pod_workers.go). A pod that is not tried again was
/// deleted.
pub const SANDBOX_RETRY: u64 = 45 * SECOND;
/// How long a plugin may run that says nothing of itself: the reference plugins take milliseconds, and the
/// kubelet gives up a sandbox after four minutes (twice its `--runtime-request-timeout`).
pub const PLUGIN_RUN: u64 = 60 * SECOND;
/// How long a meta-plugin may look for the file that it waits for before that is worth a word: on a node that
/// boots, the default network's agent is a few seconds behind.
pub const WAITS: u64 = 5 * SECOND;
/// How long ovs-vswitchd may take to make a change: it does so within a second, or after many at once within
/// a few.
pub const BEHIND: u64 = 10 * SECOND;
/// How often the kubelet must have dialled a CRI socket in vain before it counts as the one that it needs, where its
/// configuration is not known: cAdvisor dials each one once at a start of the kubelet.
pub const UNKNOWN_ENDPOINT: u32 = 3;
/// Consecutive failed CRI rounds that count as a fault. The interval is 5 s, and each takes up to 2 s.
pub const CRI_FAILURES: u32 = 3;
/// Lifetime of a CRI answer by which the runtime is not ready. It is called again every 5 s, and the calls of a round take up
/// to 6 s: three of them.
pub const CRI_ANSWER: u64 = 33 * SECOND;
/// Grace period for the first CRI answer after the agent's start; the deadline of a call is 2 s.
pub const CRI_FIRST: u64 = 3 * SECOND;
/// Configuration files whose changes are remembered.
pub const FILES: usize = 64;
/// How long a runtime has to open a configuration that was changed: containerd and CRI-O do so at once.
pub const LOAD: u64 = 10 * SECOND;
/// Things that are full, or missing, that are remembered.
pub const FULL: usize = 64;
/// Names of API servers without an address that are remembered: kubeconfigs hold one or two.
pub const NAMES: usize = 16;
/// Route look-ups that are remembered.
pub const ROUTES: usize = 256;
/// Gaps that are remembered.
pub const GAPS: usize = 64;
/// Ends of control-plane processes that are remembered.
pub const EXITS: usize = 64;
/// Longest message, bytes: the limit of the verdict contract.
pub const MESSAGE: usize = 512;
/// Longest subject, bytes: a path and a file name that a person can still read.
pub const SUBJECT: usize = 256;
/// One second.
pub const SECOND: u64 = 1_000_000_000;
/// Addresses that the control plane did not reach, of which the newest are remembered: a cluster has a handful of
/// webhooks, and kubelets that are away are among them too.
pub const UNREACHED: usize = 64;
/// Most DaemonSets without pods that are kept: a cluster has a handful.
pub const BLOCKED: usize = 8;
/// How long a failed connect counts when nobody tries again. The agent asks every 10 s, and a client's
/// back-off grows to 30 s: two minutes without a repetition mean that nobody uses the address any more.
pub const CONNECT_FAILURE: u64 = 120 * SECOND;
/// For how long requests of a client must stay without an answer to count by themselves, after a question that was
/// answered: a healthy API server answers within a second, but for lists of thousands of objects.
pub const UNANSWERED: u64 = 6 * SECOND;
/// The same while no question was answered yet: one takes up to four seconds, after three that it takes to see a silence.
pub const UNANSWERED_ALONE: u64 = 7 * SECOND;
/// Silences that follow each other for so long count together: two heartbeats of the kubelet, 10 s apart.
pub const UNANSWERED_SPAN: u64 = 20 * SECOND;
/// How long after the last silence they expire: the kubelet waits up to 10.4 s between a heartbeat that failed and the next one
/// (10 s and 4 % of jitter, pkg/kubelet/kubelet.go), whose silence is reported after three.
pub const UNANSWERED_FORGOTTEN: u64 = 14 * SECOND;
/// How long after an outage its end may be unknown to a connection that was established before: TCP sends again after twice
/// the time it has waited already, and the kubelet closes such a connection within 45 s.
pub const STALLED_LEFT_OVER: u64 = 60 * SECOND;
/// Changes of an API address that are remembered.
pub const PHASES: usize = 32;
/// In which time changes of an API address count together: the kubelet's longest restart back-off.
pub const UNSTABLE_WINDOW: u64 = 300 * SECOND;
/// How soon an API address must fail again after it failed and worked, for two failures to be enough: the kubelet restarts
/// a crashing static pod after 10, 20, 40 s.
pub const UNSTABLE_CYCLE: u64 = 60 * SECOND;
/// How often an API address must begin to fail within [`UNSTABLE_CYCLE`] for that to count, however short it is: replicas
/// behind a load balancer that are replaced one after the other make three.
pub const UNSTABLE_OFTEN: usize = 4;
/// How long an API address must be away at least for that to count: a rolling update behind a load balancer takes a second.
pub const UNSTABLE_AWAY: u64 = 3 * SECOND;
/// How long an API address must work at least for that to count as an end of a time in which it failed.
pub const UNSTABLE_BLINK: u64 = 2 * SECOND;
/// Connections that end within this time of each other count as ended by the same event. The kernel closes all sockets of a
/// process that exits within a millisecond.
pub const TOGETHER: u64 = SECOND / 10;
/// How long an address that alternated must work at least to count as stable.
pub const UNSTABLE_REST: u64 = 15 * SECOND;
/// How long before it is seen the connection tracking table may have been full, and how long after that its drops show: it
/// is looked at every 5 s, and a connect that was dropped ends after 10 s at the latest.
pub const CONNTRACK_SEEN_LATE: u64 = 15 * SECOND;
/// How long a host that has answered by ICMP may be silent before it counts as silent: a minute of clients that try
/// every few seconds.
pub const ICMP_SILENCE: u64 = 60 * SECOND;
/// How long counts what an agent ran into and did not try again: the kubelet restarts a container within 5 minutes at the
/// longest (its back-off limit), so one that still fails shows twice in this time.
pub const AGENT_FAILURE: u64 = 600 * SECOND;
/// A process that ends this often within [`CRASH_WINDOW`] is in a loop. The kubelet's restart back-off is
/// 10, 20, 40, … seconds: three ends fit into 70 s.
pub const CRASHES: usize = 3;
/// See [`CRASHES`].
pub const CRASH_WINDOW: u64 = 600 * SECOND;
/// How long nothing must crash before a loop counts as ended: longer than the kubelet's first back-offs.
pub const CRASH_REST: u64 = 120 * SECOND;
/// How long a process must run at least before it counts as up again: what fails at its start fails within seconds.
pub const UP_AGAIN: u64 = 10 * SECOND;
/// A loss whose state was not read again in this time makes the side Unknown. Reading takes milliseconds.
pub const REREAD: u64 = 5 * SECOND;
/// How long events must keep being lost before their loss stands: reading the state again does not make up for it.
pub const LOSING: u64 = 10 * SECOND;
/// How long no event must be lost before a loss no longer continues. The agent reads the counters four times a second.
pub const LOSING_REST: u64 = 5 * SECOND;
/// How long what the agent's own questions find between kubelet and API server must last to count: two questions, which are
/// ten seconds apart. A file in the middle of a rotation is whole again within one.
pub const CONFIRMED: u64 = 10 * SECOND;
/// How long an accepted credential counts against a refusal by another API server: the longest time between two questions
/// to one that answers well, five minutes and a fifth.
pub const ACCEPTED: u64 = 360 * SECOND;

use alloc::string::String;

/// `text` with at most `max` bytes, cut at a character and marked.
pub(crate) fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max - '…'.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}
