use proptest::prelude::*;

use super::*;

fn control() -> Control {
    with(Told::new())
}

fn with(told: Arc<Told>) -> Control {
    Control::new([None, Some("a".to_owned()), Some("bc".to_owned())].into_iter(), told)
}

fn replies(control: &mut Control) -> Vec<(Message, String)> {
    let mut replies = Vec::new();
    while let Some(reply) = control.reply() {
        let (head, name) = reply.split_first_chunk().unwrap();
        replies.push((Message::decode(*head), String::from_utf8(name.to_vec()).unwrap()));
        control.sent();
    }
    replies
}

fn message(id: u32, event: u16, value: u16) -> Message {
    Message { id, event, value }
}

#[test]
fn messages_are_little_endian() {
    let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(Message::decode(bytes), message(0x0403_0201, 0x0605, 0x0807));
    assert_eq!(Message::decode(bytes).encode(), bytes);
}

#[test]
fn a_ready_driver_hears_of_every_port_once() {
    let mut control = control();
    assert_eq!(control.handle(message(0, DEVICE_READY, 1)), Ok(Effect::None));
    let expected = [
        (message(0, PORT_ADD, 1), ""),
        (message(0, CONSOLE_PORT, 1), ""),
        (message(0, PORT_OPEN, 1), ""),
        (message(1, PORT_ADD, 1), ""),
        (message(1, PORT_NAME, 1), "a"),
        (message(1, PORT_OPEN, 1), ""),
        (message(2, PORT_ADD, 1), ""),
        (message(2, PORT_NAME, 1), "bc"),
        (message(2, PORT_OPEN, 1), ""),
    ];
    assert_eq!(replies(&mut control), expected.map(|(message, name)| (message, name.to_owned())));
    assert_eq!(control.handle(message(0, DEVICE_READY, 1)), Err("driver is ready twice"));
    assert_eq!(replies(&mut control), []);
}

#[test]
fn what_was_told_continues_in_another_machine() {
    let told = Told::new();
    let mut control = with(told.clone());
    control.handle(message(0, DEVICE_READY, 1)).unwrap();
    assert_eq!(told.save(), Err(StateError::Busy("the console has messages for the guest")));
    replies(&mut control);
    control.handle(message(2, PORT_OPEN, 1)).unwrap();
    control.set_host_open(1, false);
    replies(&mut control);
    let state = told.save().unwrap();

    let told = Told::new();
    told.restore(&state).unwrap();
    let mut control = with(told);
    assert_eq!([1, 2].map(|port| control.is_guest_open(port)), [false, true]);
    assert_eq!(control.handle(message(0, DEVICE_READY, 1)), Err("driver is ready twice"));
    // Only what has changed is told.
    [0, 1, 2].into_iter().for_each(|port| control.set_host_open(port, true));
    assert_eq!(replies(&mut control), [(message(1, PORT_OPEN, 1), String::new())]);
    assert!(Told::new().restore(&state[1..]).is_err());
}

#[test]
fn each_message_has_its_effect() {
    let mut control = control();
    let opened = |port, open| Ok(Effect::Opened { port, open });
    for (id, event, value, expected) in [
        (1, PORT_READY, 1, Ok(Effect::None)),
        (1, PORT_READY, 0, Err("driver could not set up a port")),
        (0, DEVICE_READY, 0, Err("driver could not set up the device")),
        (1, PORT_OPEN, 1, opened(1, true)),
        (1, PORT_OPEN, 1, Ok(Effect::None)),
        (2, PORT_OPEN, 1, opened(2, true)),
        (1, PORT_OPEN, 0, opened(1, false)),
        (1, PORT_OPEN, 0, Ok(Effect::None)),
        (1, PORT_OPEN, 2, Err("unknown control message")),
        (1, PORT_ADD, 1, Err("unknown control message")),
        (1, PORT_NAME, 1, Err("unknown control message")),
        (1, 0xffff, 1, Err("unknown control message")),
        (3, PORT_OPEN, 1, Err("control message for a port that does not exist")),
        (u32::MAX, PORT_READY, 1, Err("control message for a port that does not exist")),
    ] {
        assert_eq!(control.handle(message(id, event, value)), expected, "{id} {event} {value}");
    }
    assert!(!control.is_guest_open(0) && !control.is_guest_open(1) && control.is_guest_open(2));
    assert_eq!(replies(&mut control), []);
}

#[test]
fn the_driver_hears_when_the_hosts_side_changes() {
    let mut control = control();
    control.set_host_open(1, false);
    assert_eq!(replies(&mut control), [], "the driver is not ready");
    control.handle(message(0, DEVICE_READY, 1)).unwrap();
    let said = replies(&mut control);
    assert!(!said.iter().any(|(said, _)| *said == message(1, PORT_OPEN, 1)));
    control.set_host_open(1, true);
    control.set_host_open(1, true);
    assert_eq!(replies(&mut control), [(message(1, PORT_OPEN, 1), String::new())]);
    for _ in 0..100 {
        control.set_host_open(1, false);
        control.set_host_open(1, true);
    }
    control.set_host_open(1, false);
    assert_eq!(replies(&mut control), [(message(1, PORT_OPEN, 0), String::new())]);
}

proptest! {
    #[test]
    fn no_input_grows_the_replies(
        input in prop::collection::vec((0u32..5, 0u16..9, 0u16..3, any::<bool>()), 0..300),
    ) {
        let mut control = control();
        let mut waiting = 0;
        for (id, event, value, open) in input {
            let _ = control.handle(message(id, event, value));
            control.set_host_open(id as usize % 3, open);
            waiting = control.replies.len();
            prop_assert!(waiting <= 12, "3 messages for each port, and one for each change");
        }
        prop_assert_eq!(replies(&mut control).len(), waiting);
    }
}
