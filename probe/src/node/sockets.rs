//! TCP listeners and unanswered connects of the host's namespace, by sock_diag(7).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, Timer,
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};
use probe_engine::{Actor, Listener};

use super::processes;

/// Most listeners that are taken: the engine remembers as many.
const LISTENERS: usize = 4096;
/// The kernel fills its dump buffers up to 32 KiB, net/netlink/af_netlink.c.
const BUFFER: usize = 32 * 1024;

/// Every listener, with the process that owns it where that can be found.
pub(crate) fn snapshot() -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for response in dump(&Query { states: StateFlags::LISTEN, ..Query::default() })? {
        let id = &response.header.socket_id;
        found.push((SocketAddr::new(id.source_address, id.source_port), response.header.inode));
    }
    found.truncate(LISTENERS);
    let owners = processes::socket_owners(&found.iter().map(|(_, inode)| *inode).collect::<BTreeSet<_>>());
    Ok(listeners(found, &owners))
}

/// A connect that was under way before anybody watched.
#[derive(Clone, Debug)]
pub(crate) struct Connecting {
    /// Address asked for.
    pub(crate) to: SocketAddr,
    /// How often its SYN was sent again.
    pub(crate) retransmits: u32,
    /// Who asked, where that can be found.
    pub(crate) client: Actor,
}

/// Connects to `targets` whose SYN was sent again at least once: nobody has answered them so far.
pub(crate) fn unanswered(targets: &[SocketAddr]) -> io::Result<Vec<Connecting>> {
    let mut found = Vec::new();
    for response in dump(&Query { states: StateFlags::SYN_SENT, ..Query::default() })? {
        let id = &response.header.socket_id;
        let to = SocketAddr::new(id.destination_address.to_canonical(), id.destination_port);
        if let Some(Timer::Retransmit(_, again @ 1..)) = response.header.timer
            && targets.contains(&to)
        {
            found.push((to, u32::from(again), response.header.inode));
        }
    }
    found.truncate(LISTENERS);
    let owners = processes::socket_owners(&found.iter().map(|(.., inode)| *inode).collect());
    let client = |inode| owners.get(&inode).cloned().unwrap_or_default();
    Ok(found
        .into_iter()
        .map(|(to, retransmits, inode)| Connecting { to, retransmits, client: client(inode) })
        .collect())
}

fn listeners(found: Vec<(SocketAddr, u32)>, owners: &BTreeMap<u32, Actor>) -> Vec<Listener> {
    let owner = |inode| owners.get(&inode).cloned().unwrap_or_default();
    let row = |(local, inode)| Listener { local, up: true, process: owner(inode), host_netns: true };
    found.into_iter().map(row).collect()
}

/// An established connection, as `struct tcp_info` shows it (include/uapi/linux/tcp.h; it only grows).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Established {
    /// The other side.
    pub(crate) to: SocketAddr,
    /// Inode of the socket, by which its owner is found.
    pub(crate) inode: u32,
    /// Time-outs in a row.
    pub(crate) retransmits: u8,
    /// Segments under way.
    pub(crate) unacked: u32,
    /// Milliseconds since this side sent data.
    pub(crate) last_sent_ms: u32,
    /// Milliseconds since data came.
    pub(crate) last_received_ms: u32,
    /// Milliseconds since an acknowledgement came.
    pub(crate) last_ack_ms: u32,
    /// Bytes acknowledged by the other side, the SYN among them.
    pub(crate) acked: u64,
    /// Bytes that came.
    pub(crate) received: u64,
}

/// Connections to `targets`; the kernel picks them by their port.
pub(crate) fn established(targets: &[SocketAddr]) -> io::Result<Vec<Established>> {
    let ports: BTreeSet<u16> = targets.iter().map(SocketAddr::port).collect();
    let mut found = Vec::new();
    for to_port in ports {
        let extensions = ExtensionFlags::INFO;
        for response in dump(&Query { states: StateFlags::ESTABLISHED, extensions, to_port })? {
            let id = &response.header.socket_id;
            let to = SocketAddr::new(id.destination_address.to_canonical(), id.destination_port);
            let info = response.nlas.iter().find_map(|nla| match nla {
                Nla::TcpInfo(bytes) => established_from(to, response.header.inode, bytes),
                _ => None,
            });
            found.extend(info.filter(|_| targets.contains(&to)));
        }
    }
    found.truncate(LISTENERS);
    Ok(found)
}

/// The other sides of connections to this port, and the inode of each socket.
pub(crate) fn connected_to(port: u16) -> io::Result<Vec<(IpAddr, u32)>> {
    let query = Query { states: StateFlags::ESTABLISHED, to_port: port, ..Query::default() };
    let found = dump(&query)?.into_iter().take(LISTENERS);
    let other = |response: InetResponse| {
        let ip = response.header.socket_id.destination_address.to_canonical();
        (ip, response.header.inode)
    };
    Ok(found.map(other).collect())
}

fn established_from(to: SocketAddr, inode: u32, info: &[u8]) -> Option<Established> {
    let short = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    Some(Established {
        to,
        inode,
        retransmits: *info.get(2)?,
        unacked: short(24)?,
        last_sent_ms: short(44)?,
        last_received_ms: short(52)?,
        last_ack_ms: short(56)?,
        acked: long(120)?,
        received: long(128)?,
    })
}

/// What is asked of the kernel.
#[derive(Clone, Debug)]
struct Query {
    states: StateFlags,
    extensions: ExtensionFlags,
    /// Only sockets whose other side has this port; 0 for all.
    to_port: u16,
}

impl Default for Query {
    fn default() -> Self {
        Self { states: StateFlags::empty(), extensions: ExtensionFlags::empty(), to_port: 0 }
    }
}

/// Every TCP socket of both families that fits.
fn dump(query: &Query) -> io::Result<Vec<InetResponse>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        found.extend(dump_family(u8::try_from(family).unwrap_or_default(), query)?);
    }
    Ok(found)
}

fn dump_family(family: u8, query: &Query) -> io::Result<Vec<InetResponse>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut socket_id =
        if i32::from(family) == libc::AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    socket_id.destination_port = query.to_port;
    let request = InetRequest {
        family,
        protocol: u8::try_from(libc::IPPROTO_TCP).unwrap_or_default(),
        extensions: query.extensions.clone(),
        states: query.states.clone(),
        socket_id,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let size = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = buffer.get(..size).unwrap_or_default();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = message.header.length as usize;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found.push(*response);
                }
                _ => {}
            }
            // Messages are aligned to four bytes, netlink(7).
            rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_connection_is_found_with_its_bytes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let to = listener.local_addr().expect("bound");
        let mut client = std::net::TcpStream::connect(to).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        io::Write::write_all(&mut client, b"hello").expect("write");
        let mut heard = [0; 5];
        io::Read::read_exact(&mut server, &mut heard).expect("read");
        let found = established(&[to]).expect("sock_diag");
        // Counted with the SYN once the acknowledgement came back.
        assert!(matches!(found.as_slice(), [one] if one.to == to && one.received == 0 && one.acked >= 1));
        assert_eq!(established(&["127.0.0.1:1".parse().expect("an address")]).expect("sock_diag"), []);
    }

    #[test]
    fn a_real_listener_is_found_with_its_owner() {
        let v4 = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let v6 = std::net::TcpListener::bind("[::1]:0").expect("bind");
        let found = snapshot().expect("sock_diag");
        for listener in [v4, v6] {
            let addr = listener.local_addr().expect("bound");
            let row = found.iter().find(|row| row.local == addr).expect("in the dump");
            assert_eq!(row.process.pid, std::process::id());
        }
    }
}
