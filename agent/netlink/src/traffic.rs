//! Traffic control at a link's ingress (linux/pkt_sched.h, linux/pkt_cls.h, linux/rtnetlink.h `struct tcmsg`): a
//! queueing discipline, and a filter whose action redirects every packet to another link (tc-mirred(8)).

use alloc::string::String;

use crate::attributes::{Attributes, Nest, kind, number, text};
use crate::message::{Message, Object, Operation, Verb};

/// Length of tcmsg.
const FIXED: usize = 20;
/// The ingress discipline: its fixed handle, and its parent TC_H_INGRESS.
const INGRESS: u32 = 0xffff_0000;
const AT_INGRESS: u32 = 0xffff_fff1;
/// Priority 1 of a filter, and its protocol, ETH_P_ALL in network byte order.
const FOR_ALL: u32 = 1 << 16 | 0x0003u16.to_be() as u32;

/// Returns a request that creates the ingress discipline of a link without one.
pub fn create_ingress(link: u32) -> Message {
    ingress(Verb::CREATE, link)
}

/// Returns a request that deletes a link's ingress discipline with its filters. It contains the discipline's kind, so
/// that the kernel refuses to delete a `clsact`, which has the same parent.
pub fn delete_ingress(link: u32) -> Message {
    ingress(Operation::Delete, link)
}

fn ingress(verb: impl Into<Verb>, link: u32) -> Message {
    Message::new(verb, Object::Discipline, &fixed(link, INGRESS, AT_INGRESS, 0))
        .with(kind::TRAFFIC_KIND, b"ingress\0")
}

/// Returns a request for a filter `handle` at the ingress of link `from` that redirects every packet to link `to`.
pub fn create_redirection(from: u32, to: u32, handle: u32) -> Message {
    /// TCA_MIRRED_PARMS, TCA_MATCHALL_ACT, and the number of the first action.
    const MIRRED_PARAMETERS: u16 = 2;
    const MATCHALL_ACTIONS: u16 = 2;
    const FIRST: u16 = 1;
    let options = Nest::default().with(MIRRED_PARAMETERS, &mirred(to));
    let action = Nest::default().with(kind::TRAFFIC_KIND, b"mirred\0").nest(kind::TRAFFIC_OPTIONS, &options);
    let matchall = Nest::default().nest(MATCHALL_ACTIONS, &Nest::default().nest(FIRST, &action));
    Message::new(Verb::CREATE, Object::Filter, &fixed(from, handle, INGRESS, FOR_ALL))
        .with(kind::TRAFFIC_KIND, b"matchall\0")
        .nest(kind::TRAFFIC_OPTIONS, &matchall)
}

/// Returns a request for the filters at a link's ingress.
pub fn list_filters(link: u32) -> Message {
    Message::new(Verb::LIST, Object::Filter, &fixed(link, 0, INGRESS, 0))
}

/// A filter at a link's ingress. The kernel lists a filter's head, with handle 0, before its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Number of the filter, unique among those of its kind.
    pub handle: u32,
    /// Kind of the filter, for example `matchall` or `flower`. Empty if the kernel does not say.
    pub kind: String,
}

impl Filter {
    /// Parses an entry of the list.
    pub fn parse(body: &[u8]) -> Option<Filter> {
        let (fixed, rest) = body.split_first_chunk::<FIXED>()?;
        let name = Attributes::find(rest, kind::TRAFFIC_KIND).map(text).unwrap_or_default();
        Some(Filter { handle: number(&fixed[8..]), kind: name })
    }
}

/// Returns tc_mirred (linux/tc_act/tc_mirred.h): index, capabilities, action, two counts, operation, link.
fn mirred(to: u32) -> [u8; 28] {
    /// TC_ACT_STOLEN: the packet now belongs to the other link.
    const STOLEN: u32 = 4;
    /// TCA_EGRESS_REDIR.
    const REDIRECT_OUT: u32 = 1;
    let mut parameters = [0; 28];
    for (at, number) in [(8, STOLEN), (20, REDIRECT_OUT), (24, to)] {
        parameters[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    parameters
}

/// Returns tcmsg: family, link, handle, parent, info.
fn fixed(link: u32, handle: u32, parent: u32, info: u32) -> [u8; FIXED] {
    let mut fixed = [0; FIXED];
    for (at, number) in [(4, link), (8, handle), (12, parent), (16, info)] {
        fixed[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_the_kernels_to_the_byte() {
        #[rustfmt::skip]
        assert_eq!(create_redirection(2, 5, 0x76_6d6d).into_bytes(1), [
            112, 0, 0, 0, 44, 0, 5, 6, 1, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 2, 0, 0, 0, 0x6d, 0x6d, 0x76, 0, 0, 0, 0xff, 0xff, 0, 3, 1, 0,
            13, 0, 1, 0, b'm', b'a', b't', b'c', b'h', b'a', b'l', b'l', 0, 0, 0, 0,
            60, 0, 2, 0, 56, 0, 2, 0, 52, 0, 1, 0,
            11, 0, 1, 0, b'm', b'i', b'r', b'r', b'e', b'd', 0, 0,
            36, 0, 2, 0, 32, 0, 2, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0,
        ]);
    }

    #[test]
    fn the_discipline_is_the_kernels_to_the_byte() {
        let rest = [
            &[0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0xff, 0xff, 0xf1, 0xff, 0xff, 0xff, 0, 0, 0, 0][..],
            &[12, 0, 1, 0],
            b"ingress\0",
        ];
        let created = create_ingress(2).into_bytes(1);
        assert_eq!(created[..16], [48, 0, 0, 0, 36, 0, 5, 6, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(created[16..], rest.concat());
        let deleted = delete_ingress(2).into_bytes(1);
        assert_eq!(deleted[..16], [48, 0, 0, 0, 37, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(deleted[16..], rest.concat());
    }

    #[test]
    fn a_filter_is_read_with_its_handle_and_kind() {
        let message = create_redirection(2, 5, 9).into_bytes(1);
        assert_eq!(Filter::parse(&message[16..]), Some(Filter { handle: 9, kind: "matchall".into() }));
        assert_eq!(Filter::parse(&[0; FIXED]), Some(Filter { handle: 0, kind: String::new() }));
        assert_eq!(Filter::parse(&[0; FIXED - 1]), None);
        assert_eq!(&list_filters(2).into_bytes(0)[..8], [36, 0, 0, 0, 46, 0, 1, 3]);
    }
}
