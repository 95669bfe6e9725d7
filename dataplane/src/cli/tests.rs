//! Our command line: what it asks for, and the line that refuses it.

use std::time::SystemTime;

use super::*;
use crate::config::Cores;
use crate::fault::ExitCode;
use crate::testing::Scratch;

fn parse_words(words: &str) -> Result<Command, OperatorFault> {
    parse_in(words.split_whitespace().map(OsString::from).collect(), |_| None, &[])
}

fn printed(words: &str) -> String {
    match parse_words(words) {
        Ok(Command::Print(text)) => text,
        other => panic!("{words}: {other:?}"),
    }
}

#[test]
fn runs_with_flags_alone() {
    let Ok(Command::Run(checked)) =
        parse_words("dataplane --cores 2 --listen :1 --listen=:2,:3 --cert a,b --cert c,d")
    else {
        panic!("it must run");
    };
    assert_eq!(checked.cores, Cores::Count(2));
    assert_eq!(checked.listen.iter().map(|address| address.port()).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(matches!(checked.tls, Some(crate::certs::Source::Files(files)) if files.len() == 2));
}

#[test]
fn reads_the_file_that_the_environment_names() {
    let scratch = Scratch::new();
    let path = scratch.write("relay.toml", "cores = 3\nlog = \"warn\"");
    let variable = |name: &str| match name {
        "PERIGEE_CONFIG" => Some(path.display().to_string()),
        "PERIGEE_LOG" => Some("debug".into()),
        _ => None,
    };
    let Ok(Command::Run(checked)) = parse_in(vec!["dataplane".into()], variable, &[]) else {
        panic!("it must run")
    };
    assert_eq!((checked.cores, &*checked.log), (Cores::Count(3), "debug"));
}

#[test]
fn a_mistyped_variable_is_refused_with_the_nearest() {
    let run = |args: &[&str], name| {
        parse_in(args.iter().map(OsString::from).collect(), |_| None, &["HOME", name])
    };
    for (name, message) in [
        ("PERIGEE_COERS", "PERIGEE_COERS: sets no key; did you mean PERIGEE_CORES?"),
        (
            "PERIGEE_QQQQ",
            "PERIGEE_QQQQ: sets no key; see dataplane --help for the keys, or unset it",
        ),
    ] {
        let fault = run(&["dataplane"], name).expect_err(name);
        assert_eq!((fault.to_string().as_str(), fault.code()), (message, ExitCode::Config));
        assert!(run(&["derper", "-dev"], name).is_ok(), "derper's command line reads none");
    }
    for name in [
        "PERIGEE_CORES",
        "PERIGEE_CONFIG",
        "PERIGEE_SLOW",
        "PERIGEE_SERVICE_HOST",
        "PERIGEE_CONTROL_SOCKET",
    ] {
        assert!(run(&["dataplane"], name).is_ok(), "{name}");
    }
}

#[test]
fn help_begins_with_two_examples_and_names_every_key_once() {
    let help = printed("dataplane --help");
    assert!(help.starts_with("Examples:\n  dataplane --cores 2\n  dataplane --config "), "{help}");
    assert!(help.contains("Exit codes: 0 fine"));
    for key in Key::ALL {
        let flag = format!("--{} ", key.spec().flag);
        assert_eq!(
            help.lines().filter(|line| line.trim_start().starts_with(&flag)).count(),
            1,
            "{flag}"
        );
    }
}

#[test]
fn version_says_what_this_is() {
    assert!(printed("dataplane version").starts_with("perigee dataplane "));
    assert!(printed("dataplane --version").starts_with("dataplane "));
}

#[test]
fn a_wrong_command_line_is_one_line_with_the_fix() {
    for (words, message) in [
        (
            "dataplane --coers 2",
            "unexpected argument '--coers' found; a similar argument exists: '--cores'",
        ),
        (
            "dataplane --cores",
            "a value is required for '--cores <N|auto|LIST>' but none was supplied; see dataplane --help",
        ),
        (
            "dataplane --cores 1 --cores 2",
            "the argument '--cores <N|auto|LIST>' cannot be used multiple times; see dataplane --help",
        ),
        (
            "dataplane chekc",
            "unrecognized subcommand 'chekc'; a similar subcommand exists: 'check'",
        ),
        (
            "dataplane --cores few",
            "--cores: \"few\" is not a set of cores; write auto, a number, or a list such as 2-9,12",
        ),
    ] {
        let fault = parse_words(words).expect_err(words);
        assert_eq!(
            (fault.to_string().as_str(), fault.code()),
            (message, ExitCode::Usage),
            "{words}"
        );
    }
}

#[test]
fn check_prints_settings_key_and_certificate_and_makes_nothing() {
    let scratch = Scratch::new();
    let key = scratch.path("relay.key");
    let args = ["dataplane", "check", "--cores", "1", "--key-file"].map(OsString::from);
    let command = parse_in(args.into_iter().chain([key.clone().into()]).collect(), |_| None, &[]);
    let Ok(Command::Check { checked, effective }) = command else {
        panic!("it must check: {command:?}")
    };
    let text = scratch
        .strip(&report(&checked, &effective, SystemTime::now()).expect("a start would succeed"));
    assert!(text.starts_with("cores = \"1\"  # --cores\nio = \"auto\"  # default\n"), "{text}");
    assert!(text.ends_with("# identity: would be made in relay.key\n# certificate: self-signed, a new one at each start\n"));
    assert!(!key.exists());
}

#[test]
fn check_makes_no_certificate_in_a_directory_that_is_there() {
    let scratch = Scratch::new();
    let words = ["dataplane", "check", "--cores", "1", "--cert-dir"].map(OsString::from);
    let command =
        parse_in(words.into_iter().chain([scratch.path("").into()]).collect(), |_| None, &[]);
    let Ok(Command::Check { checked, effective }) = command else { panic!("it must check") };
    let text = report(&checked, &effective, SystemTime::now()).expect("a start would succeed");
    assert!(text.contains("# certificate: self-signed, would be made in "), "{text}");
    let files = std::fs::read_dir(scratch.path("")).expect("the directory is there");
    assert_eq!(files.count(), 0);
}

#[test]
fn check_shows_the_satellites_fingerprint_and_refuses_an_open_key() {
    use std::os::unix::fs::PermissionsExt;

    let scratch = Scratch::new();
    let key = scratch.path("satellite.pem");
    let words = |verb: &[&str]| {
        let start = ["dataplane"].iter().chain(verb).map(OsString::from);
        let flags = ["--satellite-key-file".into(), key.clone().into()];
        let end = ["--cores", "1"].map(OsString::from);
        parse_in(start.chain(flags).chain(end).collect(), |_| None, &[])
    };
    let check = || {
        let Ok(Command::Check { checked, effective }) = words(&["check"]) else {
            panic!("it must check")
        };
        report(&checked, &effective, SystemTime::now())
    };
    let text = check().expect("a start would succeed");
    assert!(text.contains("# satellite: a key would be made in "), "{text}");
    assert!(!key.exists());
    let made = keys::Keys::load_or_create(&key).expect("the folder is ours");
    let line = format!("# satellite: {}\n", made.fingerprint());
    assert!(check().expect("a start would succeed").contains(&line));
    let Ok(Command::ChangeKey(rotate, path)) = words(&["satellite", "rotate"]) else {
        panic!("it must change the key")
    };
    rotate(&path).expect("the file is good");
    let line = format!("# satellite, the key before: {}\n", made.fingerprint());
    assert!(check().expect("a start would succeed").contains(&line));
    let Ok(Command::ChangeKey(settle, path)) = words(&["satellite", "settle"]) else {
        panic!("it must change the key")
    };
    settle(&path).expect("the file is good");
    assert!(!check().expect("a start would succeed").contains("the key before"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
    let fault = check().expect_err("others may read it");
    assert!(fault.to_string().contains("others may read this key (mode 0644)"), "{fault}");
    let none = parse_words("dataplane satellite rotate").expect_err("no file is named");
    assert_eq!(none.code(), ExitCode::Config);
    assert!(parse_words("dataplane satellite").is_err());
}

#[test]
fn check_refuses_what_a_start_would() {
    let Ok(Command::Check { checked, effective }) =
        parse_words("dataplane check --cert none.pem,none.key")
    else {
        panic!("it must check");
    };
    let fault = report(&checked, &effective, SystemTime::now()).expect_err("there is no such file");
    assert_eq!(fault.code(), ExitCode::Config);
    assert_eq!(
        fault.to_string(),
        "none.pem: no such file or directory; the certificate must be a readable PEM file"
    );
}

#[test]
fn a_link_called_derper_takes_derpers_flags() {
    for words in ["/opt/bin/derper -dev -stun=false", "dataplane derper --dev --stun=0"] {
        let Ok(Command::Run(checked)) = parse_words(words) else { panic!("{words} must run") };
        assert_eq!(checked.listen, ["[::]:3340".parse().expect("an address")], "{words}");
        assert!(
            checked.udp_listen.is_empty() && checked.tls.is_none() && checked.key_file.is_none()
        );
    }
}
