//! A client and a server for the laboratory; copied under the names of the programs they play.
//!
//! `lab-helper serve ADDR [--mptcp]` prints `listening`, then accepts and closes.
//! `lab-helper dial ADDR [--go] [--give-up MS] [--count N] [--every MS] [--cgroup DIR]` prints an errno for
//! each connect: 0 for success, -1 when it gave up. `--go` connects as Go does: without blocking.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

/// `IPPROTO_MPTCP`, include/uapi/linux/in.h.
const IPPROTO_MPTCP: i32 = 262;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        [_, "serve", on, flags @ ..] => serve(on, flags.contains(&"--mptcp")),
        [_, "dial", to, flags @ ..] => dial(to, flags),
        _ => Err(io::Error::other("usage: serve ADDR | dial ADDR")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "lab-helper: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(on: &str, mptcp: bool) -> io::Result<()> {
    let addr: SocketAddr = on.parse().map_err(io::Error::other)?;
    let listener = if mptcp { listen_mptcp(addr)? } else { TcpListener::bind(addr)? };
    writeln!(io::stdout(), "listening")?;
    loop {
        drop(listener.accept()?);
    }
}

/// As Go's listeners do since 1.24.
fn listen_mptcp(addr: SocketAddr) -> io::Result<TcpListener> {
    // SAFETY: no memory is involved.
    let fd =
        check(unsafe { libc::socket(family(addr), libc::SOCK_STREAM | libc::SOCK_CLOEXEC, IPPROTO_MPTCP) })?;
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
    let value =
        |name: &str| flags.iter().position(|flag| *flag == name).and_then(|at| flags.get(at + 1)).copied();
    let number = |name: &str| value(name).and_then(|text| text.parse::<u64>().ok());
    if let Some(dir) = value("--cgroup") {
        std::fs::write(format!("{dir}/cgroup.procs"), std::process::id().to_string())?;
    }
    let every = Duration::from_millis(number("--every").unwrap_or(100));
    for _ in 0..number("--count").unwrap_or(u64::MAX) {
        let errno = match number("--give-up") {
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

fn give_up(addr: SocketAddr, ms: u64) -> io::Result<i32> {
    non_blocking(addr, i32::try_from(ms).unwrap_or(i32::MAX))
}

/// socket(SOCK_NONBLOCK), connect, poll, SO_ERROR, close.
fn non_blocking(addr: SocketAddr, patience_ms: i32) -> io::Result<i32> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(family(addr), kind, 0) })?;
    // SAFETY: socket(2) has just answered with this new descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let (name, length) = sockaddr(addr);
    // SAFETY: `name` is live and of this length.
    if unsafe { libc::connect(fd, (&raw const name).cast(), length) } == 0 {
        return Ok(0);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EINPROGRESS) {
        return Ok(error.raw_os_error().unwrap_or(-1));
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
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut errno).cast(), &raw mut size)
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
