//! Route and neighbour look-ups with rtnetlink(7).

use std::net::IpAddr;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use probe_engine::Route;

use super::links::handle;

/// Timeout of a look-up. The kernel responds immediately, except on an overloaded machine.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Looks up the route to `to`. A look-up that fails or times out counts as a route, because it proves no
/// fault.
pub(crate) async fn lookup(to: IpAddr) -> Route {
    let errno = match tokio::time::timeout(TIMEOUT, route(to)).await {
        Ok(Err(errno)) => errno,
        Ok(Ok(_)) | Err(_) => 0,
    };
    Route { to, errno }
}

/// Returns the next hop of the route, or the positive errno of the kernel.
async fn route(to: IpAddr) -> Result<IpAddr, u32> {
    let Ok(handle) = handle() else { return Ok(to) };
    let mut message = RouteMessage::default();
    let (family, length, address) = match to {
        IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    message.attributes.push(RouteAttribute::Destination(address));
    let mut responses = std::pin::pin!(handle.route().get(message).execute());
    match responses.try_next().await {
        Ok(Some(response)) => {
            // IPv6 returns the type of the route where IPv4 returns an error.
            match response.header.kind {
                RouteType::Unreachable => return Err(libc::EHOSTUNREACH.unsigned_abs()),
                RouteType::Prohibit => return Err(libc::EACCES.unsigned_abs()),
                RouteType::BlackHole => return Err(libc::EINVAL.unsigned_abs()),
                _ => {}
            }
            let gateway = response.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
                RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
                _ => None,
            });
            Ok(gateway.unwrap_or(to))
        }
        Err(rtnetlink::Error::NetlinkError(error)) => Err(error.raw_code().unsigned_abs()),
        Ok(None) | Err(_) => Ok(to),
    }
}

/// Returns whether the next hop on the route to `to` currently does not respond to neighbour discovery.
pub(crate) async fn neighbour_failed(to: IpAddr) -> bool {
    tokio::time::timeout(TIMEOUT, next_hop_failed(to)).await.unwrap_or(false)
}

async fn next_hop_failed(to: IpAddr) -> bool {
    let (Ok(hop), Ok(handle)) = (route(to).await, handle()) else { return false };
    let mut dump = std::pin::pin!(handle.neighbours().get().execute());
    while let Ok(Some(message)) = dump.try_next().await {
        let is_hop = message.attributes.iter().any(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => IpAddr::V4(*v4) == hop,
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => IpAddr::V6(*v6) == hop,
            _ => false,
        });
        if is_hop {
            return matches!(message.header.state, NeighbourState::Failed | NeighbourState::Incomplete);
        }
    }
    false
}
