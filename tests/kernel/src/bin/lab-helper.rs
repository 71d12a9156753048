//! Clients, servers and plugins of the tests; copied under the names of the programs that they act as.
//!
//! - `lab-helper serve ADDR [--mptcp] [--status N] [--expired | --silent | --echo | --echo-once | --close | --reset
//!   [--byte]]` prints `listening`, then acts as an API server. With `--silent` it reads and never responds; with
//!   `--echo` it sends back what it reads; with `--echo-once` it does so for the first message of clients that do not
//!   use TLS, and acts as an API server for the others; with `--close` or `--reset` it closes or resets each
//!   connection without a response, or after one byte (`--byte`).
//! - `lab-helper dial ADDR [--go] [--give-up MS] [--count N] [--every MS] [--cgroup DIR] [--talk MS]` prints an
//!   errno for each connect: 0 for success, -1 when it timed out. `--go` connects as Go does: without blocking.
//!   `--talk` sends a few bytes and waits that long for a response, with the same output; with `--pause MS` it
//!   does so repeatedly on one connection, with `--bytes N` at once. `--at-once N` starts that many connects at the
//!   same time. With `--first-cpu` it runs on the first processor, and with `--real-time` with a real-time priority.
//!   With `--nobody` it runs as that user.
//! - `lab-helper send FROM TO [--count N] [--every MS] [--spread] [--broadcast]` sends datagrams; with `--spread`
//!   each goes to the next port.
//! - `lab-helper unix PATH [--count N] [--every MS] [--read]` connects to a Unix socket, or reads a file, with the
//!   same output.
//! - `lab-helper unix PATH --rename` renames a file as agents rename the files of other CNIs, and keeps running.
//! - `lab-helper unix PATH --listen` listens there, and accepts nothing.
//! - `lab-helper unix / --inotify` requests inotify instances beyond its limit, with the same output.
//! - With `CNI_COMMAND` set it is a plugin: it waits for `sleep` milliseconds, connects to the Unix socket `socket`,
//!   and prints a result or an error object, with writev(2) if `writev` is true. All of these are fields of its
//!   configuration; so is `error`, with which it always fails.
//! - `lab-helper unix / --grow` allocates memory until it is killed.
//! - `lab-helper dial ADDR --hold N` keeps N connections open until its input is closed; prints 0 once all are
//!   established. `serve ADDR --hold` accepts them and does nothing else.
//! - `lab-helper crowd N PROGRAM ARG…` starts N processes of a program with `busybox` as `argv[0]` and its own standard
//!   input, prints `ready`, and waits for them.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use kernel_tests::tls::{self, Health};

/// `IPPROTO_MPTCP`, include/uapi/linux/in.h.
const IPPROTO_MPTCP: i32 = 262;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        [_, "crowd", many, program, args @ ..] => crowd(many, program, args),
        _ if std::env::var_os("CNI_COMMAND").is_some() => plugin(),
        [_, "serve", on, flags @ ..] => serve(on, flags),
        [_, "dial", to, flags @ ..] => dial(to, flags),
        [_, "send", from, to, flags @ ..] => send(from, to, flags),
        [_, "unix", _, "--inotify"] => inotify(),
        [_, "unix", _, "--grow", flags @ ..] => grow(flags),
        [_, "unix", path, "--rename"] => rename(path),
        [_, "unix", path, "--listen"] => listen(path),
        [_, "unix", path, flags @ ..] if flags.contains(&"--read") => read(path, flags),
        [_, "unix", path, flags @ ..] => unix(path, flags),
        _ => Err(io::Error::other("usage: serve ADDR | dial ADDR | unix PATH")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "lab-helper: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(on: &str, flags: &[&str]) -> io::Result<()> {
    let has = |flag| flags.contains(&flag);
    let addr: SocketAddr = on.parse().map_err(io::Error::other)?;
    let listener = if has("--mptcp") { listen_mptcp(addr)? } else { TcpListener::bind(addr)? };
    let status = number(flags, "--status").and_then(|status| status.try_into().ok()).unwrap_or(200);
    let health = Health { status, expired: has("--expired") };
    // Creating a key is slow on an emulated processor, and most clients do not use TLS.
    let config =
        Arc::new(LazyLock::new(move || tls::config(addr.ip(), health).map_err(|error| error.to_string())));
    let (silent, echo, once) = (has("--silent"), has("--echo"), has("--echo-once"));
    let (close, reset, byte) = (has("--close"), has("--reset"), has("--byte"));
    let mut held = Vec::new();
    if has("--hold") {
        allow_many_descriptors()?;
    }
    writeln!(io::stdout(), "listening")?;
    loop {
        let (mut connection, _) = listener.accept()?;
        if has("--hold") {
            held.push(connection);
            continue;
        }
        if reset {
            // Closing a socket with unread bytes resets the connection.
            let mut first = [0; 1];
            let _ = connection.read(&mut first);
            if byte {
                let _ = connection.write_all(&first);
            }
        }
        if close || reset {
            continue;
        }
        let config = Arc::clone(&config);
        std::thread::spawn(move || -> anyhow::Result<()> {
            if silent {
                io::copy(&mut connection, &mut io::sink())?;
            } else if echo || once && !speaks_tls(&connection)? {
                let mut message = [0; 4096];
                while let size @ 1.. = connection.read(&mut message)? {
                    connection.write_all(&message[..size])?;
                    if once {
                        io::copy(&mut connection, &mut io::sink())?;
                    }
                }
            } else {
                let config = LazyLock::force(&config).clone().map_err(anyhow::Error::msg)?;
                tls::serve(connection, config, health)?;
            }
            Ok(())
        });
    }
}

/// Returns whether a client starts with a TLS record of the handshake, RFC 8446 section 5.1.
fn speaks_tls(connection: &TcpStream) -> io::Result<bool> {
    let mut first = [0; 1];
    Ok(connection.peek(&mut first)? == 1 && first[0] == 22)
}

/// Acts as a plugin that connects to its agent.
fn plugin() -> io::Result<()> {
    let mut config = String::new();
    io::stdin().read_to_string(&mut config)?;
    let config: serde_json::Value = serde_json::from_str(&config)?;
    if let Some(ms) = config["sleep"].as_u64() {
        std::thread::sleep(Duration::from_millis(ms));
    }
    let connected = config["socket"].as_str().map_or(Ok(()), |path| UnixStream::connect(path).map(drop));
    // The error of a plugin that fails by itself.
    let error = config["error"].as_str();
    let output = match (&connected, error) {
        (Ok(()), Some(error)) => serde_json::json!({"code": 11, "msg": error, "details": error}).to_string(),
        (Ok(()), None) => r#"{"cniVersion":"0.4.0","interfaces":[]}"#.to_owned(),
        (Err(error), _) => format!(r#"{{"code":11,"msg":"RPC failed: {error}"}}"#),
    };
    if config["writev"] == true {
        let (head, tail) = output.as_bytes().split_at(9);
        let written = io::stdout().write_vectored(&[IoSlice::new(head), IoSlice::new(tail)])?;
        io::stdout().write_all(&output.as_bytes()[written..])?;
    } else {
        io::stdout().write_all(output.as_bytes())?;
    }
    io::stdout().flush()?;
    if connected.is_err() || error.is_some() {
        std::process::exit(1);
    }
    Ok(())
}

fn unix(path: &str, flags: &[&str]) -> io::Result<()> {
    for _ in 0..number(flags, "--count").unwrap_or(u64::MAX) {
        let errno = UnixStream::connect(path).map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0);
        writeln!(io::stdout(), "{errno}")?;
        std::thread::sleep(Duration::from_millis(number(flags, "--every").unwrap_or(100)));
    }
    Ok(())
}

/// Requests an inotify instance every 200 ms under a descriptor limit that leaves no room for one.
fn inotify() -> io::Result<()> {
    // SAFETY: all zero is a valid value.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    limit.rlim_cur = 3;
    limit.rlim_max = 3;
    // SAFETY: `limit` is live.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    loop {
        // SAFETY: no memory is involved.
        let errno = check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) })
            .map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0);
        writeln!(io::stdout(), "{errno}")?;
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Enters a cgroup and allocates memory, a megabyte at a time, until it is killed.
fn grow(flags: &[&str]) -> io::Result<()> {
    let dir = value(flags, "--cgroup").unwrap_or_default();
    std::fs::write(format!("{dir}/cgroup.procs"), std::process::id().to_string())?;
    writeln!(io::stdout(), "0")?;
    let mut allocated = Vec::new();
    loop {
        allocated.push(vec![1_u8; 1 << 20]);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn rename(path: &str) -> io::Result<()> {
    std::fs::rename(path, format!("{path}.cilium_bak"))?;
    writeln!(io::stdout(), "0")?;
    loop {
        std::thread::park();
    }
}

fn listen(path: &str) -> io::Result<()> {
    let _listener = UnixListener::bind(path)?;
    writeln!(io::stdout(), "0")?;
    loop {
        std::thread::park();
    }
}

fn read(path: &str, flags: &[&str]) -> io::Result<()> {
    loop {
        let errno = std::fs::read(path).map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0);
        writeln!(io::stdout(), "{errno}")?;
        std::thread::sleep(Duration::from_millis(number(flags, "--every").unwrap_or(100)));
    }
}

fn value<'a>(flags: &[&'a str], name: &str) -> Option<&'a str> {
    flags.iter().position(|flag| *flag == name).and_then(|at| flags.get(at + 1)).copied()
}

fn number(flags: &[&str], name: &str) -> Option<u64> {
    value(flags, name)?.parse().ok()
}

/// Listens with MPTCP as Go does since 1.24: falls back to TCP where the kernel has no MPTCP.
fn listen_mptcp(addr: SocketAddr) -> io::Result<TcpListener> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(family(addr), libc::SOCK_STREAM | libc::SOCK_CLOEXEC, IPPROTO_MPTCP) };
    if fd < 0 {
        return TcpListener::bind(addr);
    }
    // SAFETY: socket(2) has just returned this new descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let (name, length) = sockaddr(addr);
    // SAFETY: `name` is live and of this length.
    check(unsafe { libc::bind(fd, (&raw const name).cast(), length) })?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::listen(fd, 16) })?;
    Ok(TcpListener::from(socket))
}

fn dial(to: &str, flags: &[&str]) -> io::Result<()> {
    let addr: SocketAddr = to.parse().map_err(io::Error::other)?;
    if flags.contains(&"--hold") {
        allow_many_descriptors()?;
    }
    if flags.contains(&"--nobody") {
        // SAFETY: no memory is involved.
        check(unsafe { libc::setuid(65534) })?;
    }
    if let Some(dir) = value(flags, "--cgroup") {
        std::fs::write(format!("{dir}/cgroup.procs"), std::process::id().to_string())?;
    }
    if let Some(many) = number(flags, "--hold") {
        let held = (0..many).map(|_| TcpStream::connect(addr)).collect::<io::Result<Vec<_>>>()?;
        writeln!(io::stdout(), "0")?;
        io::copy(&mut io::stdin(), &mut io::sink())?;
        drop(held);
        return Ok(());
    }
    if let Some(many) = number(flags, "--at-once") {
        return at_once(addr, many);
    }
    if flags.contains(&"--first-cpu") {
        run_on_first_cpu(flags.contains(&"--real-time"))?;
    }
    let every = Duration::from_millis(number(flags, "--every").unwrap_or(100));
    for _ in 0..number(flags, "--count").unwrap_or(u64::MAX) {
        let errno = match number(flags, "--give-up") {
            _ if flags.contains(&"--pause") => return chat(addr, flags),
            _ if flags.contains(&"--talk") => talk(addr, number(flags, "--talk").unwrap_or(1000)),
            Some(ms) => give_up(addr, ms)?,
            None if flags.contains(&"--go") => non_blocking(addr, 30_000)?,
            None => match TcpStream::connect(addr) {
                Ok(_) => 0,
                Err(error) => error.raw_os_error().unwrap_or(-1),
            },
        };
        writeln!(io::stdout(), "{errno}")?;
        if !every.is_zero() {
            std::thread::sleep(every);
        }
    }
    Ok(())
}

fn allow_many_descriptors() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: 20_000, rlim_max: 20_000 };
    // SAFETY: `limit` is live.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(drop)
}

fn crowd(many: &str, program: &str, args: &[&str]) -> io::Result<()> {
    let mut crowd = Vec::new();
    for _ in 0..many.parse().map_err(io::Error::other)? {
        crowd.push(Command::new(program).arg0("busybox").args(args).stdout(Stdio::null()).spawn()?);
    }
    writeln!(io::stdout(), "ready")?;
    for mut child in crowd {
        child.wait()?;
    }
    Ok(())
}

/// Pins this process to the first processor. With a real-time priority it preempts all tasks that have none.
fn run_on_first_cpu(real_time: bool) -> io::Result<()> {
    // SAFETY: a set of processors is plain bits, and all zero is the empty set.
    let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the first processor has a bit in every set.
    unsafe { libc::CPU_SET(0, &mut cpus) };
    // SAFETY: `cpus` is live and of this length.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&cpus), &raw const cpus) })?;
    if real_time {
        let priority = libc::sched_param { sched_priority: 1 };
        // SAFETY: `priority` is live.
        check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) })?;
    }
    Ok(())
}

/// Sends datagrams from one address to another.
fn send(from: &str, to: &str, flags: &[&str]) -> io::Result<()> {
    let socket = UdpSocket::bind(from)?;
    socket.set_broadcast(flags.contains(&"--broadcast"))?;
    let mut to: SocketAddr = to.parse().map_err(io::Error::other)?;
    for _ in 0..number(flags, "--count").unwrap_or(1) {
        // An ICMP error makes the next call fail, but the datagram before it was sent.
        let _ = socket.send_to(b"hello", to);
        if flags.contains(&"--spread") {
            to.set_port(to.port() + 1);
        }
        std::thread::sleep(Duration::from_millis(number(flags, "--every").unwrap_or(100)));
    }
    Ok(())
}

/// Sends the same message on one connection repeatedly, and prints 0 for each response.
fn chat(addr: SocketAddr, flags: &[&str]) -> io::Result<()> {
    let pause = Duration::from_millis(number(flags, "--pause").unwrap_or(1000));
    let bytes = number(flags, "--bytes").and_then(|bytes| bytes.try_into().ok()).unwrap_or(5);
    let mut connection = TcpStream::connect(addr)?;
    let mut message = vec![b'h'; bytes];
    loop {
        connection.write_all(&message)?;
        connection.read_exact(&mut message)?;
        writeln!(io::stdout(), "0")?;
        std::thread::sleep(pause);
    }
}

/// Sends a message and waits for a response; returns an errno.
fn talk(addr: SocketAddr, ms: u64) -> i32 {
    let exchange = || -> io::Result<i32> {
        let mut connection = TcpStream::connect(addr)?;
        connection.set_read_timeout(Some(Duration::from_millis(ms)))?;
        connection.write_all(b"hello")?;
        let mut response = [0; 5];
        Ok(if connection.read(&mut response)? > 0 { 0 } else { libc::ECONNRESET })
    };
    exchange().unwrap_or_else(|error| error.raw_os_error().unwrap_or(-1))
}

fn give_up(addr: SocketAddr, ms: u64) -> io::Result<i32> {
    non_blocking(addr, i32::try_from(ms).unwrap_or(i32::MAX))
}

/// Starts a non-blocking connect, and returns the socket and its errno.
fn start_connect(addr: SocketAddr) -> io::Result<(OwnedFd, i32)> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(family(addr), kind, 0) })?;
    // SAFETY: socket(2) has just returned this new descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let (name, length) = sockaddr(addr);
    // SAFETY: `name` is live and of this length.
    if unsafe { libc::connect(fd, (&raw const name).cast(), length) } == 0 {
        return Ok((socket, 0));
    }
    Ok((socket, io::Error::last_os_error().raw_os_error().unwrap_or(-1)))
}

/// Starts many connects at the same time and closes all of them after 500 ms.
fn at_once(addr: SocketAddr, many: u64) -> io::Result<()> {
    let sockets = (0..many).map(|_| start_connect(addr)).collect::<io::Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_millis(500));
    drop(sockets);
    writeln!(io::stdout(), "-1")
}

/// Connects as Go does, with socket(SOCK_NONBLOCK), connect, poll, `SO_ERROR` and close, and returns the errno.
fn non_blocking(addr: SocketAddr, timeout_ms: i32) -> io::Result<i32> {
    let (socket, errno) = start_connect(addr)?;
    if errno != libc::EINPROGRESS {
        return Ok(errno);
    }
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one live entry.
    if check(unsafe { libc::poll(&raw mut poll, 1, timeout_ms) })? == 0 {
        return Ok(-1);
    }
    let mut errno = 0_i32;
    let mut size = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4);
    // SAFETY: `errno` and `size` are live, and `size` is the size of `errno`.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut errno).cast(),
            &raw mut size,
        )
    })?;
    Ok(errno)
}

const fn family(addr: SocketAddr) -> i32 {
    if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// Returns a `sockaddr_in` or `sockaddr_in6` in a buffer of the size of the larger one, and its length.
fn sockaddr(addr: SocketAddr) -> ([u8; 28], libc::socklen_t) {
    let mut bytes = [0; 28];
    bytes[..2].copy_from_slice(&u16::try_from(family(addr)).unwrap_or_default().to_ne_bytes());
    bytes[2..4].copy_from_slice(&addr.port().to_be_bytes());
    match addr {
        SocketAddr::V4(v4) => {
            bytes[4..8].copy_from_slice(&v4.ip().octets());
            (bytes, 16)
        }
        SocketAddr::V6(v6) => {
            bytes[8..24].copy_from_slice(&v6.ip().octets());
            (bytes, 28)
        }
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
