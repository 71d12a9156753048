//! TCP sockets of the host's network namespace, from sock_diag(7).

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

/// Most sockets that are returned: the engine keeps as many listeners.
const SOCKETS: usize = 4096;
/// Receive buffer, bytes: the kernel fills dump buffers up to 32 KiB (net/netlink/af_netlink.c).
const BUFFER: usize = 32 * 1024;

/// Returns all listeners, with the process that has the socket open if it can be determined.
pub(crate) fn snapshot() -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for response in dump(&Query { states: StateFlags::LISTEN, ..Query::default() })? {
        let id = &response.header.socket_id;
        found.push((SocketAddr::new(id.source_address, id.source_port), response.header.inode));
    }
    found.truncate(SOCKETS);
    let owners = processes::socket_owners(&found.iter().map(|(_, inode)| *inode).collect::<BTreeSet<_>>());
    Ok(listeners(found, &owners))
}

/// A pending connect that may be older than the agent.
#[derive(Clone, Debug)]
pub(crate) struct Connecting {
    /// Destination.
    pub(crate) to: SocketAddr,
    /// Retransmissions of the SYN.
    pub(crate) retransmits: u32,
    /// The connecting process, if it can be determined.
    pub(crate) client: Actor,
}

/// Returns the connects to `targets` whose SYN was retransmitted at least once, without a reply so far.
pub(crate) fn unanswered(targets: &[SocketAddr]) -> io::Result<Vec<Connecting>> {
    let mut found = Vec::new();
    for response in dump(&Query { states: StateFlags::SYN_SENT, ..Query::default() })? {
        let id = &response.header.socket_id;
        let to = SocketAddr::new(id.destination_address.to_canonical(), id.destination_port);
        if let Some(Timer::Retransmit(_, retransmits @ 1..)) = response.header.timer
            && targets.contains(&to)
        {
            found.push((to, u32::from(retransmits), response.header.inode));
        }
    }
    found.truncate(SOCKETS);
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

/// An established connection, from `struct tcp_info` (include/uapi/linux/tcp.h), to which kernels only append
/// fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Established {
    /// Address of the peer.
    pub(crate) to: SocketAddr,
    /// Inode number of the socket, by which its process is found.
    pub(crate) inode: u32,
    /// Consecutive retransmission timeouts (`tcpi_retransmits`).
    pub(crate) retransmits: u8,
    /// Segments in flight.
    pub(crate) unacked: u32,
    /// Milliseconds since the last data was sent.
    pub(crate) last_sent_ms: u32,
    /// Milliseconds since the last data was received.
    pub(crate) last_received_ms: u32,
    /// Milliseconds since the last acknowledgement was received.
    pub(crate) last_ack_ms: u32,
    /// Bytes acknowledged by the peer, including the SYN.
    pub(crate) acked: u64,
    /// Bytes received.
    pub(crate) received: u64,
}

/// Returns the established connections to `targets`; the kernel selects them by port.
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
    found.truncate(SOCKETS);
    Ok(found)
}

/// Returns the peers of established connections to this port, and the inode number of each socket.
pub(crate) fn connected_to(port: u16) -> io::Result<Vec<(IpAddr, u32)>> {
    let query = Query { states: StateFlags::ESTABLISHED, to_port: port, ..Query::default() };
    let found = dump(&query)?.into_iter().take(SOCKETS);
    let peer = |response: InetResponse| {
        let ip = response.header.socket_id.destination_address.to_canonical();
        (ip, response.header.inode)
    };
    Ok(found.map(peer).collect())
}

/// Parses `struct tcp_info`; `None` if the kernel's is too old to have all fields.
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

/// Which sockets to dump.
#[derive(Clone, Debug)]
struct Query {
    states: StateFlags,
    extensions: ExtensionFlags,
    /// Port of the peer; 0 for any.
    to_port: u16,
}

impl Default for Query {
    fn default() -> Self {
        Self { states: StateFlags::empty(), extensions: ExtensionFlags::empty(), to_port: 0 }
    }
}

/// Returns the matching TCP sockets of both address families.
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
            // Messages are aligned to four bytes (netlink(7)).
            rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_an_established_connection_with_its_byte_counts() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let to = listener.local_addr().expect("bound");
        let mut client = std::net::TcpStream::connect(to).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        io::Write::write_all(&mut client, b"hello").expect("write");
        let mut received = [0; 5];
        io::Read::read_exact(&mut server, &mut received).expect("read");
        let found = established(&[to]).expect("sock_diag");
        // The SYN is counted, and the data as soon as its acknowledgement arrives.
        assert!(matches!(found.as_slice(), [one] if one.to == to && one.received == 0 && one.acked >= 1));
        assert_eq!(established(&["127.0.0.1:1".parse().expect("an address")]).expect("sock_diag"), []);
    }

    #[test]
    fn finds_listeners_of_both_families_with_their_process() {
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
