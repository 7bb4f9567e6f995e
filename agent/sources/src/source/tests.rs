//! What sources say, what they refuse, and that writing them changes nothing.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Source, BadSource> {
    text.parse()
}

#[test]
fn folders_and_files_are_told_apart_by_name() {
    let source = parse("file:///models/tiny").unwrap();
    assert_eq!((source.place, source.file), (Place::Folder("/models/tiny".into()), None));
    let source = parse("file:///models/tiny%20one/a.GGUF").unwrap();
    assert_eq!(source.place, Place::Folder("/models/tiny one".into()));
    assert_eq!(source.file.as_deref(), Some("a.GGUF"));
    for folder in ["https://w.example/k2/", "https://w.example/k2"] {
        let Place::Site(url) = parse(folder).unwrap().place else { panic!("{folder}") };
        assert_eq!(url.as_str(), "https://w.example/k2/");
    }
    let source = parse("https://w.example/k2/a%20b.gguf").unwrap();
    assert_eq!(source.file.as_deref(), Some("a b.gguf"));
    let Place::Site(url) = source.place else { panic!() };
    assert_eq!(url.as_str(), "https://w.example/k2/");
}

#[test]
fn a_hub_has_repositories_revisions_folders_and_files() {
    let hub = |repo: &str, revision: Option<&str>, below: &str| Place::Hub {
        repo: repo.to_owned(),
        revision: revision.map(str::to_owned),
        below: below.to_owned(),
    };
    for (text, place, file) in [
        ("hf://unsloth/Kimi-K2.5-GGUF", hub("unsloth/Kimi-K2.5-GGUF", None, ""), None),
        ("hf://unsloth/Kimi-K2.5-GGUF@main", hub("unsloth/Kimi-K2.5-GGUF", Some("main"), ""), None),
        ("hf://o/r@refs/pr/1", hub("o/r", Some("refs/pr/1"), ""), None),
        ("hf://o/r@refs/pr/1/Q8_0", hub("o/r", Some("refs/pr/1"), "Q8_0"), None),
        ("hf://o/r@a%2Fb/x/y.gguf", hub("o/r", Some("a/b"), "x"), Some("y.gguf")),
        ("hf://o/r/UD-Q2_K_XL/", hub("o/r", None, "UD-Q2_K_XL"), None),
        ("hf://o/r/a%20b.gguf", hub("o/r", None, ""), Some("a b.gguf")),
    ] {
        let source = parse(text).unwrap();
        assert_eq!((&source.place, source.file.as_deref()), (&place, file), "{text}");
        assert_eq!(source.to_string(), text);
    }
    let pinned = parse("hf://o/r@a%2Fb/x/y.gguf").unwrap().pinned(&"c".repeat(40));
    assert_eq!(pinned.to_string(), format!("hf://o/r@{}/x/y.gguf", "c".repeat(40)));
    assert_eq!(parse(&pinned.to_string()).unwrap(), pinned);
}

#[test]
fn buckets_and_registries() {
    let source = parse("s3://my-models/kimi/k2/").unwrap();
    assert_eq!(source.place, Place::Bucket { name: "my-models".into(), prefix: "kimi/k2".into() });
    assert_eq!(source.pinned("x"), source);
    assert_eq!(parse("s3://my-models/a.gguf").unwrap().file.as_deref(), Some("a.gguf"));
    let registry = |text: &str| match parse(text).unwrap().place {
        Place::Registry { host, repo, reference } => (host, repo, reference),
        other => panic!("{other:?}"),
    };
    let digest = format!("sha256:{}", "0f".repeat(32));
    let (host, repo, reference) = registry("oci://r.example:5000/ai/kimi:q2");
    assert_eq!((host.as_str(), repo.as_str()), ("r.example:5000", "ai/kimi"));
    assert_eq!(reference, Reference::Tag("q2".into()));
    assert_eq!(registry("oci://r.example/kimi").2, Reference::Tag("latest".into()));
    assert_eq!(registry(&format!("oci://r.example/kimi@{digest}")).2, Reference::Digest(digest.clone()));
    let pinned = parse("oci://r.example:5000/ai/kimi:q2").unwrap().pinned(&digest);
    assert_eq!(pinned.to_string(), format!("oci://r.example:5000/ai/kimi@{digest}"));
    assert_eq!(parse(&pinned.to_string()).unwrap(), pinned);
}

#[test]
fn every_refusal_says_what_to_write_instead() {
    for (text, expected) in [
        ("/models/tiny", "file:///"),
        ("models", "file:///"),
        ("file://other/models", "file:///absolute"),
        ("ftp://h/x", "`ftp` sources"),
        ("http://w.example/k2/", "use https://"),
        ("http://localhost/k2/", "use https://"),
        ("https://user@w.example/", "user name"),
        ("https://u:p@w.example/", "user name"),
        ("https://w.example/?token=1", "`?`"),
        ("https://w.example/#x", "`#`"),
        ("https:\\\\w.example\\x", "backslash"),
        ("https://w.example/a b", "%20"),
        ("https://169.254.169.254/latest/", "link-local"),
        ("https://[fe80::1]/x", "link-local"),
        ("https://[::ffff:169.254.169.254]/x", "link-local"),
        ("https://2852039166/x", "link-local"),
        ("https://0.0.0.0/x", "link-local"),
        ("file:///models/x%2F..%2F..%2Fetc", "encoded slash"),
        ("https://w.example/ok/%2E%2E%2fsecret/", "encoded slash"),
        ("https://w.example/ok/..%5Csecret/", "encoded slash"),
        ("file:///models/x%00.gguf", "encoded slash"),
        ("", "is not a source"),
        ("hf://unsloth", "hf://owner/repository"),
        ("hf:///x", "hf://owner/repository"),
        ("hf:unsloth/x", "hf://owner/repository"),
        ("hf://unsloth/", "hf://owner/repository"),
        ("hf://o/r@", "hf://owner/repository"),
        ("hf://o/r@../../x", "hf://owner/repository"),
        ("hf://o/r/../x", "hf://owner/repository"),
        ("hf://o/r/%2e%2e/x", "hf://owner/repository"),
        ("hf://o/r//x", "hf://owner/repository"),
        ("hf://u:p@o/r", "hf://owner/repository"),
        ("hf://o/r?x", "`?`"),
        ("s3://", "s3://bucket/prefix"),
        ("s3://UPPER/x", "s3://bucket/prefix"),
        ("s3://k:s@bucket/x", "s3://bucket/prefix"),
        ("s3://bucket/../x", "s3://bucket/prefix"),
        ("s3://a", "s3://bucket/prefix"),
        ("oci://r.example", "oci://registry/repository"),
        ("oci://r.example/", "oci://registry/repository"),
        ("oci://r.example/UPPER", "oci://registry/repository"),
        ("oci://r.example/x:", "oci://registry/repository"),
        ("oci://r.example/x@sha256:12", "oci://registry/repository"),
        ("oci://r.example/x@md5:12", "oci://registry/repository"),
        ("oci://r.example/../x", "oci://registry/repository"),
        ("oci://169.254.169.254/x", "oci://registry/repository"),
        ("oci://u@r.example/x", "oci://registry/repository"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert!(parse(&format!("https://w.example/{}", "x".repeat(4000))).is_err());
}

#[test]
fn plain_http_is_for_loopback() {
    for text in ["http://127.0.0.1:8000/x/", "http://[::1]:8000/x/"] {
        assert!(parse(text).is_ok(), "{text}");
    }
}

/// Pieces of sources, good and bad, in any order.
fn sources() -> impl Strategy<Value = String> {
    let scheme =
        prop::sample::select(vec!["hf://", "s3://", "oci://", "https://", "http://", "file:///", ""]);
    let piece = prop::sample::select(vec![
        "a",
        "bc-d",
        "model.gguf",
        "/",
        "/",
        "@",
        ":",
        "main",
        "refs/pr/12",
        "..",
        ".",
        "%2F",
        "%20",
        "%",
        "ä",
        "127.0.0.1",
        "w.example",
        ":5000",
        "Q8_0",
        "[::1]",
        "sha256:",
        "refs/convert/x",
    ]);
    (scheme, prop::collection::vec(piece, 0..9))
        .prop_map(|(scheme, pieces)| scheme.to_owned() + &pieces.concat())
}

proptest! {
    #[test]
    fn parsing_never_panics_and_writing_changes_nothing(text in prop_oneof![sources(), any::<String>()]) {
        if let Ok(source) = parse(&text) {
            prop_assert_eq!(source.to_string(), text);
            let again = parse(&source.to_string()).unwrap();
            prop_assert_eq!(&again, &source);
            let canonical = parse(&source.canonical()).unwrap();
            prop_assert_eq!((canonical.place, canonical.file), (source.place.clone(), source.file.clone()));
            let revision = match source.place {
                Place::Registry { .. } => format!("sha256:{}", "ab".repeat(32)),
                _ => "c".repeat(40),
            };
            let pinned = source.pinned(&revision);
            let read = parse(&pinned.to_string()).unwrap();
            prop_assert_eq!(&read.place, &pinned.place, "{}", pinned);
            prop_assert_eq!(read.file, pinned.file);
        }
    }
}
