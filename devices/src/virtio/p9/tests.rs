use super::*;
use crate::share::ShareTree;

#[test]
fn the_configuration_is_the_tag_and_its_length() {
    let tree = ShareTree::new().unwrap();
    let device = P9::new("share", server(&tree), || {}).unwrap();
    let mut config = [0xff; 9];
    device.read_config(0, &mut config);
    assert_eq!(&config, b"\x05\0share\0\0");
    let long = P9::new(&"x".repeat(300), server(&tree), || {}).unwrap();
    long.read_config(0, &mut config);
    assert_eq!(config[..2], [255, 0]);
    let info = device.info();
    assert_eq!((info.device_id, info.features, info.queue_sizes), (9, 1, vec![128]));
}
