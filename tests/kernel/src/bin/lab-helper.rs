//! Clients, servers and plugins of the laboratory; copied under the names of the programs they play.
//!
//! - `lab-helper serve ADDR [--mptcp] [--status N] [--expired | --silent | --answer | --answer-once | --close | --reset
//!   [--byte]]` prints `listening`, then plays an API server; or reads and never answers; or answers what it reads; or
//!   answers only the first message of clients that do not speak TLS, and is an API server for the others; or closes, or
//!   resets, without a word or after one byte.
//! - `lab-helper dial ADDR [--go] [--give-up MS] [--count N] [--every MS] [--cgroup DIR] [--talk MS]` prints an
//!   errno for each connect: 0 for success, -1 when it gave up. `--go` connects as Go does: without blocking.
//!   `--talk` sends a few bytes and waits so long for an answer, with the same answers; with `--pause MS` it
//!   stays on one connection and does so repeatedly, with `--bytes N` at once. `--at-once N` has so many under way at once. With
//!   `--first-cpu` it runs there, and with `--real-time` before everything else there. With `--nobody` it runs as
//!   that user.
//! - `lab-helper send FROM TO [--count N] [--every MS] [--spread] [--broadcast]` sends datagrams, each to
//!   the next port.
//! - `lab-helper unix PATH [--count N] [--every MS] [--read]` connects to a Unix socket, or reads a file, with the
//!   same answers.
//! - `lab-helper unix PATH --rename` gives a file the name that agents give to those of others, and stays.
//! - `lab-helper unix PATH --listen` listens there, and accepts nothing.
//! - `lab-helper unix / --inotify` asks for inotify instances beyond its limit, with the same answers.
//! - With `CNI_COMMAND` set it is a plugin: it reads its configuration, connects to the Unix socket that
//!   `socket` names there, and prints a result or an error object, by writev(2) when `writev` is true; first it
//!   waits for `sleep` milliseconds.
//! - `lab-helper unix / --grow` takes memory until it is ended.
//! - `lab-helper dial ADDR --hold N` keeps N connections open until it is killed; prints 0 once all are established.
//!   `serve ADDR --hold` accepts them and does nothing else.
//! - `lab-helper crowd N PROGRAM ARG…` starts N processes of a program that is called busybox, with its own standard input,
//!   prints `there`, and waits for them.

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
    // A key is dear where the processor is emulated, and most clients do not speak.
    let config =
        Arc::new(LazyLock::new(move || tls::config(addr.ip(), health).map_err(|error| error.to_string())));
    let (silent, echo, once) = (has("--silent"), has("--answer"), has("--answer-once"));
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
            // What it does not read makes the end a reset.
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
                let mut heard = [0; 4096];
                while let size @ 1.. = connection.read(&mut heard)? {
                    connection.write_all(&heard[..size])?;
                    if once {
                        io::copy(&mut connection, &mut io::sink())?;
                    }
                }
            } else {
                let config = LazyLock::force(&config).clone().map_err(anyhow::Error::msg)?;
                tls::answer(connection, config, health)?;
            }
            Ok(())
        });
    }
}

/// Whether a client begins with a TLS record of the handshake, RFC 8446 section 5.1.
fn speaks_tls(connection: &TcpStream) -> io::Result<bool> {
    let mut first = [0; 1];
    Ok(connection.peek(&mut first)? == 1 && first[0] == 22)
}

/// A plugin that asks an agent.
fn plugin() -> io::Result<()> {
    let mut config = String::new();
    io::stdin().read_to_string(&mut config)?;
    let config: serde_json::Value = serde_json::from_str(&config)?;
    if let Some(ms) = config["sleep"].as_u64() {
        std::thread::sleep(Duration::from_millis(ms));
    }
    let answer = config["socket"].as_str().map_or(Ok(()), |path| UnixStream::connect(path).map(drop));
    // What a plugin prints that fails by itself.
    let says = config["says"].as_str();
    let words = match (&answer, says) {
        (Ok(()), Some(says)) => serde_json::json!({"code": 11, "msg": says, "details": says}).to_string(),
        (Ok(()), None) => r#"{"cniVersion":"0.4.0","interfaces":[]}"#.to_owned(),
        (Err(error), _) => format!(r#"{{"code":11,"msg":"RPC failed: {error}"}}"#),
    };
    if config["writev"] == true {
        let (head, tail) = words.as_bytes().split_at(9);
        let written = io::stdout().write_vectored(&[IoSlice::new(head), IoSlice::new(tail)])?;
        io::stdout().write_all(&words.as_bytes()[written..])?;
    } else {
        io::stdout().write_all(words.as_bytes())?;
    }
    io::stdout().flush()?;
    if answer.is_err() || says.is_some() {
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

/// Asks for one inotify instance more than there are descriptors, now and then.
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

/// Enters a cgroup and takes memory, a megabyte at a time, until it is ended.
fn grow(flags: &[&str]) -> io::Result<()> {
    let dir = value(flags, "--cgroup").unwrap_or_default();
    std::fs::write(format!("{dir}/cgroup.procs"), std::process::id().to_string())?;
    writeln!(io::stdout(), "0")?;
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1_u8; 1 << 20]);
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

/// As Go's listeners do since 1.24: by plain TCP where the kernel has no MPTCP.
fn listen_mptcp(addr: SocketAddr) -> io::Result<TcpListener> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(family(addr), libc::SOCK_STREAM | libc::SOCK_CLOEXEC, IPPROTO_MPTCP) };
    if fd < 0 {
        return TcpListener::bind(addr);
    }
    // SAFETY: socket(2) has just answered with this new descriptor.
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
    writeln!(io::stdout(), "there")?;
    for mut child in crowd {
        child.wait()?;
    }
    Ok(())
}

/// Real time: before everything that is not, as soon as there is something to do.
fn run_on_first_cpu(real_time: bool) -> io::Result<()> {
    // SAFETY: a set of processors is plain bits.
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

/// Datagrams from one address to another.
fn send(from: &str, to: &str, flags: &[&str]) -> io::Result<()> {
    let socket = UdpSocket::bind(from)?;
    socket.set_broadcast(flags.contains(&"--broadcast"))?;
    let mut to: SocketAddr = to.parse().map_err(io::Error::other)?;
    for _ in 0..number(flags, "--count").unwrap_or(1) {
        // An answer that nobody listens makes the next call fail: it has left all the same.
        let _ = socket.send_to(b"hello", to);
        if flags.contains(&"--spread") {
            to.set_port(to.port() + 1);
        }
        std::thread::sleep(Duration::from_millis(number(flags, "--every").unwrap_or(100)));
    }
    Ok(())
}

/// Sends the same message on one connection repeatedly; one answer a line.
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

/// Says something and waits for an answer.
fn talk(addr: SocketAddr, ms: u64) -> i32 {
    let answered = || -> io::Result<i32> {
        let mut connection = TcpStream::connect(addr)?;
        connection.set_read_timeout(Some(Duration::from_millis(ms)))?;
        connection.write_all(b"hello")?;
        let mut answer = [0; 5];
        Ok(if connection.read(&mut answer)? > 0 { 0 } else { libc::ECONNRESET })
    };
    answered().unwrap_or_else(|error| error.raw_os_error().unwrap_or(-1))
}

fn give_up(addr: SocketAddr, ms: u64) -> io::Result<i32> {
    non_blocking(addr, i32::try_from(ms).unwrap_or(i32::MAX))
}

/// A connect that is under way, with its errno.
fn begin(addr: SocketAddr) -> io::Result<(OwnedFd, i32)> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(family(addr), kind, 0) })?;
    // SAFETY: socket(2) has just answered with this new descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let (name, length) = sockaddr(addr);
    // SAFETY: `name` is live and of this length.
    if unsafe { libc::connect(fd, (&raw const name).cast(), length) } == 0 {
        return Ok((socket, 0));
    }
    Ok((socket, io::Error::last_os_error().raw_os_error().unwrap_or(-1)))
}

/// Many connects under way at once, then none.
fn at_once(addr: SocketAddr, many: u64) -> io::Result<()> {
    let sockets = (0..many).map(|_| begin(addr)).collect::<io::Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_millis(500));
    drop(sockets);
    writeln!(io::stdout(), "-1")
}

/// socket(SOCK_NONBLOCK), connect, poll, SO_ERROR, close.
fn non_blocking(addr: SocketAddr, patience_ms: i32) -> io::Result<i32> {
    let (socket, errno) = begin(addr)?;
    if errno != libc::EINPROGRESS {
        return Ok(errno);
    }
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one live entry.
    if check(unsafe { libc::poll(&raw mut poll, 1, patience_ms) })? == 0 {
        return Ok(-1);
    }
    let mut errno = 0_i32;
    let mut size = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4);
    // SAFETY: `errno` and `size` are live and belong together.
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

/// A `sockaddr_in` or `sockaddr_in6` in the room of the larger one.
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

fn check(answer: i32) -> io::Result<i32> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
