use super::*;

fn resolve(args: RunArgs, env: &[(&str, &str)]) -> Result<RunConfig> {
    let nowhere = [("XDG_CONFIG_HOME", "/nonexistent")];
    RunConfig::resolve(args, |name| {
        env.iter().chain(&nowhere).find(|(key, _)| *key == name).map(|(_, value)| value.into())
    })
}

fn settings(settings: Settings) -> RunArgs {
    RunArgs { settings, target: Some("c1".into()), bundle: Some("/b".into()), ..RunArgs::default() }
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("vmm")).unwrap();
    let file = r#"{"memory": "100", "cpus": "2", "kernel": "/file/k", "agent-timeout": "7"}"#;
    fs::write(folder.path().join("vmm/config.json"), file).unwrap();
    let env =
        [("XDG_CONFIG_HOME", folder.path().to_str().unwrap()), ("VMM_CPUS", "3"), ("VMM_KERNEL", "/env/k")];
    let flags = Settings { kernel: Some("/flag/k".into()), ..Settings::default() };
    let config = resolve(settings(flags), &env).unwrap();
    assert_eq!(config.vm.memory_mib, Some(100));
    assert_eq!(config.vm.vcpus, Some(3));
    assert_eq!(config.kernel, Some("/flag/k".into()));
    assert_eq!(config.agent_timeout, Duration::from_secs(7));
    assert_eq!(config.initrd, None);

    fs::write(folder.path().join("vmm/config.json"), r#"{"memroy": "100"}"#).unwrap();
    let error = anyhow::Error::from(resolve(settings(Settings::default()), &env).unwrap_err());
    assert!(format!("{error:#}").contains("unknown field `memroy`"), "{error:#}");
}

#[test]
fn sizes_counts_and_times_are_checked() {
    for (text, mib) in [("64", Some(64)), ("512M", Some(512)), ("2g", Some(2048)), ("63", None), ("", None)] {
        assert_eq!(memory_mib("memory", text).ok(), mib, "{text}");
    }
    for text in ["G", "-1", "1.5G", "5000000G", "ä"] {
        assert!(memory_mib("memory", text).is_err(), "{text}");
    }
    for (text, count) in [("1", Some(1)), ("32", Some(32)), ("0", None), ("33", None), ("x", None)] {
        assert_eq!(vcpus("cpus", text).ok(), count, "{text}");
    }
    assert!(timeout("0").is_err());
    let error = memory_mib("memory", "10").unwrap_err().to_string();
    assert_eq!(error, r#"memory "10": a guest needs at least 64 MiB"#);
}

#[test]
fn a_maximum_of_memory_refuses_larger_sizes_by_name() {
    let config = |env: &[(&str, &str)]| resolve(settings(Settings::default()), env);
    let vm = config(&[("VMM_MAX_MEMORY", "4G"), ("VMM_DEFAULT_MEMORY", "4096")]).unwrap().vm;
    assert_eq!((vm.memory_mib, vm.default_memory_mib, vm.max_memory_mib), (None, Some(4096), Some(4096)));
    for (variable, name) in [("VMM_MEMORY", "memory"), ("VMM_DEFAULT_MEMORY", "default-memory")] {
        let error = config(&[("VMM_MAX_MEMORY", "4G"), (variable, "4097")]).unwrap_err().to_string();
        assert_eq!(error, format!(r#"{name} "4097": exceeds max-memory"#));
    }
}

#[test]
fn a_share_is_virtiofs_or_9p() {
    let config = |env: &[(&str, &str)]| resolve(settings(Settings::default()), env);
    assert_eq!(config(&[]).unwrap().vm.share, ShareType::VirtioFs);
    assert_eq!(config(&[("VMM_SHARE", "9p")]).unwrap().vm.share, ShareType::P9);
    let error = config(&[("VMM_SHARE", "nfs")]).unwrap_err().to_string();
    assert_eq!(error, r#"share "nfs": not virtiofs or 9p"#);
}

#[test]
fn vhost_net_is_on_by_default_where_available() {
    let config = |env: &[(&str, &str)]| resolve(settings(Settings::default()), env);
    assert_eq!(config(&[]).unwrap().vm.vhost_net, VhostNet::Auto);
    for (text, expected) in [("auto", VhostNet::Auto), ("on", VhostNet::On), ("off", VhostNet::Off)] {
        assert_eq!(config(&[("VMM_VHOST_NET", text)]).unwrap().vm.vhost_net, expected);
    }
    let error = config(&[("VMM_VHOST_NET", "yes")]).unwrap_err().to_string();
    assert_eq!(error, r#"vhost-net "yes": not auto, on or off"#);
}

#[test]
fn a_console_has_a_destination_and_optionally_the_serial_port() {
    for (text, serial, to) in [
        ("-", false, None),
        ("/x", false, Some("/x")),
        ("serial", true, None),
        ("serial:-", true, None),
        ("serial:/x", true, Some("/x")),
    ] {
        assert_eq!(console(text), Console { serial, to: to.map(PathBuf::from) }, "{text}");
    }
}

#[test]
fn a_directory_with_a_config_json_is_a_bundle_and_anything_else_an_id() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("hello");
    fs::create_dir(&bundle).unwrap();
    fs::write(bundle.join("config.json"), "{}").unwrap();
    let of = |target: Option<&Path>, flag: Option<&Path>| {
        bundle_and_id(target.map(|path| path.as_os_str().to_owned()), flag.map(Path::to_owned))
    };
    assert_eq!(of(Some(&bundle), None).unwrap(), (bundle.clone(), "hello".into(), false));
    assert_eq!(of(Some(Path::new("c1")), Some(&bundle)).unwrap(), (bundle.clone(), "c1".into(), true));
    assert_eq!(of(None, Some(&bundle)).unwrap(), (bundle.clone(), "hello".into(), false));
    // The tests' current directory is not a bundle, so the target stays a bundle and is refused when it is read.
    assert_eq!(of(Some(Path::new("c1")), None).unwrap().0, Path::new("c1"));
    assert_eq!(of(None, None).unwrap(), (".".into(), "container".into(), false));
    for id in ["", "..", "a/b", "ä", ".hidden", &"x".repeat(129)] {
        assert!(of(Some(Path::new(id)), Some(&bundle)).is_err(), "{id}");
    }
}

#[test]
fn a_given_agent_negotiates_and_api_4244_is_chosen_by_name() {
    let peer = |agent: Option<&str>, initrd: Option<&str>| {
        let settings = Settings {
            agent: agent.map(str::to_owned),
            initrd: initrd.map(PathBuf::from),
            ..Settings::default()
        };
        resolve(self::settings(settings), &[]).map(|config| config.vm.protocol)
    };
    assert_eq!(peer(None, None).unwrap(), Protocol::Extended);
    assert_eq!(peer(None, Some("/i")).unwrap(), Protocol::Negotiated);
    assert_eq!(peer(Some("api-4244"), Some("/i")).unwrap(), Protocol::Api4244);
    let error = peer(Some("api-4242"), None).unwrap_err().to_string();
    assert_eq!(error, "agent \"api-4242\": the only protocol that can be chosen is api-4244");
    let share = |share: Option<&str>| {
        let settings = Settings {
            agent: Some("api-4244".to_owned()),
            share: share.map(str::to_owned),
            ..Settings::default()
        };
        resolve(self::settings(settings), &[])
            .map(|config| config.vm.share)
            .map_err(|error| error.to_string())
    };
    assert_eq!(share(None).unwrap(), ShareType::P9);
    assert_eq!(
        share(Some("virtiofs")).unwrap_err(),
        "share \"virtiofs\": an agent of API 4244 supports only 9p"
    );
}

#[test]
fn templates_are_used_if_there_are_any_unless_the_user_says_otherwise() {
    let config = |env: &[(&str, &str)]| resolve(settings(Settings::default()), env);
    assert_eq!(config(&[]).unwrap().template, Use::Auto);
    let set = config(&[("VMM_TEMPLATE", "require"), ("VMM_TEMPLATE_DIR", "/t")]).unwrap();
    assert_eq!((set.template, set.templates.path()), (Use::Require, Path::new("/t")));
    assert_eq!((set.making, set.templates.limit()), (Making::Idle, 512 << 20));
    let made = config(&[("VMM_TEMPLATE_MAKE", "never"), ("VMM_TEMPLATE_LIMIT", "2G")]).unwrap();
    assert_eq!((made.making, made.templates.limit()), (Making::Never, 2 << 30));
    let wrong = config(&[("VMM_TEMPLATE_MAKE", "yes")]).unwrap_err().to_string();
    assert_eq!(wrong, "template-make \"yes\": not idle, always or never");
    assert!(config(&[("VMM_TEMPLATE_LIMIT", "some")]).is_err());
    let flags = Settings { template: Some("off".into()), ..Settings::default() };
    assert_eq!(resolve(settings(flags), &[("VMM_TEMPLATE", "require")]).unwrap().template, Use::Off);
    let error = config(&[("VMM_TEMPLATE", "yes")]).unwrap_err().to_string();
    assert_eq!(error, "template \"yes\": not auto, off or require");
}
