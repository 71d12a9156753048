//! TCP listeners and unanswered connects of the host's namespace, by sock_diag(7).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
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
    for response in dump(&StateFlags::LISTEN)? {
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
    for response in dump(&StateFlags::SYN_SENT)? {
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

/// Every TCP socket of both families in these states.
fn dump(states: &StateFlags) -> io::Result<Vec<InetResponse>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        found.extend(dump_family(u8::try_from(family).unwrap_or_default(), states)?);
    }
    Ok(found)
}

fn dump_family(family: u8, states: &StateFlags) -> io::Result<Vec<InetResponse>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let socket_id = if i32::from(family) == libc::AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = InetRequest {
        family,
        protocol: u8::try_from(libc::IPPROTO_TCP).unwrap_or_default(),
        extensions: ExtensionFlags::empty(),
        states: states.clone(),
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
