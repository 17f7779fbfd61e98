use bpf::testing::Call;
use bpf::{Instruction, X86_64};
use libc::{
    SECCOMP_RET_ALLOW as ALLOW, SECCOMP_RET_ERRNO as ERRNO, SECCOMP_RET_KILL_PROCESS as KILL_PROCESS,
    SECCOMP_RET_KILL_THREAD as KILL_THREAD, SECCOMP_RET_LOG as LOG, SECCOMP_RET_TRACE as TRACE,
    SECCOMP_RET_TRAP as TRAP,
};
use oci::error::BundleError;
use proptest::prelude::*;
use serde_json::{Value, json};
use syscalls::x86_64::Sysno;

use super::*;

const ENOSYS: u32 = ERRNO | 38;
const EPERM: u32 = ERRNO | 1;

fn call(name: &str, args: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Call { number: name.parse::<Sysno>().unwrap() as u32, architecture: X86_64, args: all }
}

/// Returns a filter's answer to a call.
fn run(filter: &Filter, call: &Call) -> u32 {
    let instruction = |word: &u64| {
        let [a, b, jt, jf, k @ ..] = word.to_le_bytes();
        Instruction { code: u16::from_le_bytes([a, b]), jt, jf, k: u32::from_le_bytes(k) }
    };
    let program: Vec<Instruction> = filter.program.0.iter().map(instruction).collect();
    bpf::testing::run(&program, call).0
}

fn profile(json: Value) -> Seccomp {
    serde_json::from_value(json).unwrap()
}

fn compiled(json: Value) -> Filter {
    compile(&profile(json)).unwrap()
}

/// Evaluates a profile by the words of the specification, as a reference for the compiler.
fn judge(profile: &Seccomp, call: &Call) -> u32 {
    let answer = |action: &str, number: Option<u32>| match action {
        "SCMP_ACT_ERRNO" => ERRNO | number.unwrap_or(1),
        "SCMP_ACT_TRACE" => TRACE | number.unwrap_or(1),
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_ALLOW" => ALLOW,
        _ => KILL_THREAD,
    };
    let default = answer(&profile.default_action, profile.default_errno_ret);
    if call.architecture != X86_64 || (0x4000_0000..u32::MAX).contains(&call.number) {
        return KILL_THREAD;
    }
    let number = |name: &String| name.parse::<Sysno>().ok().map(|number| number as u32);
    let newest = profile.syscalls.iter().flat_map(|rule| &rule.names).filter_map(number).max();
    let passes = ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"];
    if newest.is_some_and(|newest| call.number > newest)
        && call.number != u32::MAX
        && !passes.contains(&profile.default_action.as_str())
    {
        return ENOSYS;
    }
    let holds = |arg: &oci::spec::seccomp::Argument| {
        let found = call.args[arg.index as usize];
        match arg.op.as_str() {
            "SCMP_CMP_NE" => found != arg.value,
            "SCMP_CMP_LT" => found < arg.value,
            "SCMP_CMP_LE" => found <= arg.value,
            "SCMP_CMP_EQ" => found == arg.value,
            "SCMP_CMP_GE" => found >= arg.value,
            "SCMP_CMP_GT" => found > arg.value,
            _ => found & arg.value == arg.value_two,
        }
    };
    let rules: Vec<_> = profile
        .syscalls
        .iter()
        .filter(|rule| rule.names.iter().any(|name| number(name) == Some(call.number)))
        .map(|rule| (rule, answer(&rule.action, rule.errno_ret)))
        .filter(|(_, answer)| *answer != default)
        .collect();
    if let Some((_, answer)) = rules.iter().find(|(rule, _)| rule.args.is_empty()) {
        return *answer;
    }
    let applies = |rule: &oci::spec::seccomp::Syscall| {
        let mut indices: Vec<_> = rule.args.iter().map(|arg| arg.index).collect();
        indices.sort_unstable();
        indices.dedup();
        if indices.len() < rule.args.len() {
            rule.args.iter().any(holds)
        } else {
            rule.args.iter().all(holds)
        }
    };
    rules.iter().find(|(rule, _)| applies(rule)).map_or(default, |(_, answer)| *answer)
}

const NAMES: [&str; 8] = ["read", "write", "open", "close", "socket", "clone", "mseal", "no_such_call"];
const VALUES: [u64; 8] = [0, 1, 0x7f, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, 1 << 63, u64::MAX];
const ACTIONS: [&str; 7] = [
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_LOG",
    "SCMP_ACT_ALLOW",
];
const OPERATORS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];

fn one_of<T: Copy + std::fmt::Debug + 'static>(list: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(list)
}

fn any_rule() -> impl Strategy<Value = Value> {
    let args = (0..6_u32, one_of(&OPERATORS), one_of(&VALUES), one_of(&VALUES)).prop_map(
        |(index, op, value, two)| json!({"index": index, "op": op, "value": value, "valueTwo": two}),
    );
    let parts = (
        prop::collection::vec(one_of(&NAMES), 1..4),
        one_of(&ACTIONS),
        prop::option::of(0..50_u32),
        prop::collection::vec(args, 0..4),
    );
    parts.prop_map(|(names, action, number, args)| {
        let number = number.filter(|_| action.ends_with("ERRNO") || action.ends_with("TRACE"));
        json!({"names": names, "action": action, "errnoRet": number, "args": args})
    })
}

fn any_call() -> impl Strategy<Value = Call> {
    let number = prop_oneof![
        8 => one_of(&NAMES[..7]).prop_map(|name| call(name, &[]).number),
        2 => 0..500_u32,
        1 => any::<u32>(),
        1 => Just(u32::MAX),
    ];
    let architecture = prop_oneof![9 => Just(X86_64), 1 => Just(0x4000_0003_u32)];
    let args = prop::array::uniform6(
        (one_of(&VALUES), -1..2_i64).prop_map(|(value, by)| value.wrapping_add_signed(by)),
    );
    (number, architecture, args).prop_map(|(number, architecture, args)| Call { number, architecture, args })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_program_agrees_with_the_profile(
        default in one_of(&ACTIONS),
        rules in prop::collection::vec(any_rule(), 0..8),
        calls in prop::collection::vec(any_call(), 1..40),
    ) {
        let profile = profile(json!({"defaultAction": default, "syscalls": rules}));
        let filter = compile(&profile).unwrap();
        for call in calls {
            prop_assert_eq!(run(&filter, &call), judge(&profile, &call), "{:?}", call);
        }
    }
}

/// Returns a profile with the size and variety of an engine's default profile.
fn engine_like() -> Value {
    let every: Vec<&str> = (0..470).filter_map(|number| Sysno::new(number).map(|call| call.name())).collect();
    let denied =
        ["mount", "kexec_load", "reboot", "clone3", "clone", "personality", "socket", "ptrace", "bpf"];
    let allowed: Vec<&str> = every.into_iter().filter(|name| !denied.contains(name)).collect();
    let personality = |value: u32| {
        json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW",
               "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
    };
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": allowed, "action": "SCMP_ACT_ALLOW"},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
            personality(0), personality(8), personality(0x2_0000), personality(0x2_0008), personality(u32::MAX),
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2_114_060_288, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ],
    })
}

#[test]
fn a_profile_of_an_engine_compiles_and_agrees() {
    let filter = compiled(engine_like());
    assert_eq!(filter.flags, SPEC_ALLOW);
    assert!(filter.program.0.len() < 150, "{} instructions", filter.program.0.len());
    for (call, answer) in [
        (call("read", &[]), ALLOW),
        (call("execve", &[]), ALLOW),
        (call("file_setattr", &[]), ALLOW),
        (call("mount", &[]), EPERM),
        (call("reboot", &[]), EPERM),
        (call("clone3", &[]), ENOSYS),
        (call("clone", &[0x11]), ALLOW),
        (call("clone", &[0x1000_0000]), EPERM),
        (call("socket", &[2]), ALLOW),
        (call("socket", &[40]), EPERM),
        (call("personality", &[8]), ALLOW),
        (call("personality", &[9]), EPERM),
        (Call { number: 470, ..call("read", &[]) }, ENOSYS),
        (Call { number: 0x4000_0000, ..call("read", &[]) }, KILL_THREAD),
        (Call { architecture: 0x4000_0003, ..call("read", &[]) }, KILL_THREAD),
    ] {
        assert_eq!(run(&filter, &call), answer, "{call:?}");
    }
}

#[test]
fn a_program_longer_than_a_conditional_jump_agrees_with_the_profile() {
    let rules: Vec<Value> = (0..400)
        .filter_map(Sysno::new)
        .map(|call| {
            json!({"names": [call.name()], "action": "SCMP_ACT_ERRNO", "errnoRet": call as u32 + 1,
                   "args": [{"index": 1, "value": 5, "op": "SCMP_CMP_GE"}]})
        })
        .collect();
    let filter = compiled(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
    assert!(filter.program.0.len() > 2000);
    for known in (0..400).filter_map(Sysno::new) {
        let answer = |arg| run(&filter, &call(known.name(), &[0, arg]));
        assert_eq!((answer(4), answer(5)), (ALLOW, ERRNO | (known as u32 + 1)), "{known}");
    }
}

#[test]
fn a_program_above_the_kernel_s_limit_is_refused() {
    let args = |value: u32| -> Vec<Value> {
        (0..6).map(|index| json!({"index": index, "value": value, "op": "SCMP_CMP_LT"})).collect()
    };
    // The numbers differ per call, because calls with the same rules would share one span.
    let rules: Vec<Value> = (0..330)
        .filter_map(Sysno::new)
        .map(|call| json!({"names": [call.name()], "action": "SCMP_ACT_ALLOW", "args": args(call as u32)}))
        .collect();
    let error = compile(&profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}))).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("config.json linux.seccomp: not supported: ") && text.contains("4096"),
        "{text}"
    );
}

#[test]
fn a_rule_without_conditions_wins() {
    let some = json!({"names": ["open"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]});
    let all = json!({"names": ["open"], "action": "SCMP_ACT_ALLOW"});
    for syscalls in [json!([some, all]), json!([all, some])] {
        let filter = compiled(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls}));
        assert_eq!(run(&filter, &call("open", &[1])), ALLOW);
    }
}

#[test]
fn flags_are_translated_by_name() {
    for (names, flags) in [
        (json!(null), SPEC_ALLOW),
        (json!([]), 0),
        (json!(["SECCOMP_FILTER_FLAG_TSYNC"]), 0),
        (json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]), 6),
    ] {
        assert_eq!(compiled(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": names})).flags, flags);
    }
}

#[test]
fn unsupported_fields_are_refused_by_their_path() {
    let rule = |rule: Value| json!({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_TRAP"}, rule]});
    for (change, path) in [
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp.defaultAction"),
        (rule(json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})), "linux.seccomp.syscalls[1].action"),
        (
            json!({"flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}),
            "linux.seccomp.flags[1]",
        ),
    ] {
        assert_refused(
            change,
            |error| matches!(error, BundleError::Unsupported { path: found, .. } if found == path),
        );
    }
}

#[test]
fn values_that_the_specification_forbids_are_refused_by_their_path() {
    let rule = |rule: Value| json!({"syscalls": [rule]});
    let arg = |arg: Value| rule(json!({"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [arg]}));
    for (change, path) in [
        (json!({"defaultAction": ""}), "linux.seccomp.defaultAction"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}), "linux.seccomp.defaultErrnoRet"),
        (json!({"defaultErrnoRet": 4096}), "linux.seccomp.defaultErrnoRet"),
        (json!({"architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_Z80"]}), "linux.seccomp.architectures[1]"),
        (rule(json!({"names": ["read"], "action": "ALLOW"})), "linux.seccomp.syscalls[0].action"),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 5})),
            "linux.seccomp.syscalls[0].errnoRet",
        ),
        (arg(json!({"index": 6, "op": "SCMP_CMP_EQ"})), "linux.seccomp.syscalls[0].args[0].index"),
        (arg(json!({"index": 0, "op": "EQ"})), "linux.seccomp.syscalls[0].args[0].op"),
    ] {
        assert_refused(
            change,
            |error| matches!(error, BundleError::Invalid { path: found, .. } if found == path),
        );
    }
}

fn assert_refused(change: Value, expected: impl Fn(&BundleError) -> bool) {
    let mut json = json!({"defaultAction": "SCMP_ACT_ERRNO"});
    json.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    let error = compile(&profile(json.clone())).unwrap_err();
    assert!(expected(&error), "{json}: {error:?}");
}
