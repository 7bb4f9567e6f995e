//! One model over every protocol: found, headed, pinned, and read in pieces.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod site;

use site::{Q4, Q8, REPO, Site, chain, gguf, parse, read, secret};
use tandem_hub::{Content, Door, Keys};
use tandem_sources::{Access, ListedFile, Origin, ResolveError, TransferError, quants, resolve};

#[tokio::test]
async fn every_place_gives_the_same_model() {
    for tls in [false, true] {
        let site = Site::start(tls).await;
        let mut revisions = Vec::new();
        for (door, source) in site.sources() {
            let model = site
                .resolve(&source, "UD-Q4_K_XL")
                .await
                .unwrap_or_else(|e| panic!("{source}: {}", chain(&e)));
            assert!(model.files.iter().map(|file| file.name.as_str()).eq(Q4), "{source}");
            assert_eq!(model.headers[1].file_len, model.files[1].bytes, "{source}");
            revisions.push(model.revision);
            let model = site.resolve(&source, "q8_0").await.unwrap();
            let file = &model.files[0];
            assert_eq!(file.bytes, gguf(8, 100_000).len() as u64);
            assert_eq!(file.sha256.to_string(), Content::of(gguf(8, 100_000)).sha256());
            // The header costs its range, not the file.
            let origin = Origin::open(&model.source, None, &site.access()).await.unwrap();
            let whole = gguf(8, 100_000);
            assert_eq!(read(&origin, Q8, Some(5..70_000)).await.unwrap(), whole[5..70_000], "{source}");
            assert_eq!(read(&origin, Q8, Some(0..u64::MAX / 2)).await.unwrap(), whole, "{source}");
            assert_eq!(read(&origin, Q8, None).await.unwrap(), whole, "{source}");
            assert!(site.hub.count(door, Q8).requests > 0, "{source}");
        }
        revisions.dedup();
        assert_eq!(revisions.len(), 1, "equal files are equal revisions");
    }
}

#[tokio::test]
async fn a_folder_or_a_file_below_a_place_is_a_source_too() {
    let site = Site::start(false).await;
    let web = site.hub.url(Door::Web);
    for (source, name) in [
        (format!("hf://{REPO}@main/UD-Q4_K_XL"), "tiny-UD-Q4_K_XL-00001-of-00002.gguf"),
        (format!("hf://{REPO}@refs/pr/1/UD-Q4_K_XL"), "tiny-UD-Q4_K_XL-00001-of-00002.gguf"),
        (format!("hf://{REPO}/{}", Q4[1]), "tiny-UD-Q4_K_XL-00001-of-00002.gguf"),
        (format!("hf://{REPO}/{Q8}"), Q8),
        (format!("s3://{REPO}/{Q8}"), Q8),
        (format!("{web}{REPO}/{Q8}"), Q8),
    ] {
        let model =
            site.resolve(&source, "UD-Q4_K_XL").await.unwrap_or_else(|e| panic!("{source}: {}", chain(&e)));
        assert_eq!(model.files[0].name, name, "{source}");
        let origin = Origin::open(&model.source, None, &site.access()).await.unwrap();
        assert_eq!(read(&origin, name, Some(0..4)).await.unwrap(), b"GGUF", "{source}");
    }
}

#[tokio::test]
async fn branches_and_tags_are_resolved_once() {
    let site = Site::start(false).await;
    let hub = site.resolve(&format!("hf://{REPO}"), "Q8_0").await.unwrap();
    assert_eq!(hub.source.to_string(), format!("hf://{REPO}@{}", site.commit));
    let tag = format!("oci://registry.example/{REPO}:q8");
    let registry = site.resolve(&tag, "Q8_0").await.unwrap();
    let digest = site.hub.manifest_digest(REPO).unwrap();
    assert_eq!(registry.source.to_string(), format!("oci://registry.example/{REPO}@{digest}"));
    // What is published later doesn't move what was resolved.
    site.hub.publish(REPO, [(Q8, Content::of(gguf(9, 10)))]);
    for pinned in [&hub.source, &registry.source] {
        let again = resolve(pinned, "Q8_0", &[], None, &site.access()).await.unwrap();
        assert_eq!((&again.source, &again.files), (pinned, &hub.files));
        let origin = Origin::open(pinned, None, &site.access()).await.unwrap();
        assert_eq!(read(&origin, Q8, None).await.unwrap(), gguf(8, 100_000));
    }
    assert_ne!(site.resolve(&tag, "Q8_0").await.unwrap().files, registry.files);
    // A commit needs no question about what it is.
    site.hub.reset_counts();
    Origin::open(&hub.source, None, &site.access()).await.unwrap();
    assert_eq!(site.hub.count(Door::Hub, "").requests, 0);
}

#[tokio::test]
async fn pieces_of_a_file_share_one_redirect_and_links_that_expire_are_asked_for_again() {
    let site = Site::start(true).await;
    for (door, source) in
        [(Door::Hub, format!("hf://{REPO}")), (Door::Registry, format!("oci://registry.example/{REPO}"))]
    {
        let origin = site.open(&source).await;
        site.hub.reset_counts();
        let piece = |n: u64| read(&origin, Q8, Some(n * 1000..n * 1000 + 1000));
        for n in 0..5 {
            piece(n).await.unwrap();
        }
        let path = if door == Door::Hub { Q8.to_owned() } else { String::new() };
        assert_eq!(site.hub.count(door, &path).requests, 1, "{source}");
        site.hub.expire_links();
        assert_eq!(piece(7).await.unwrap(), gguf(8, 100_000)[7000..8000]);
        assert_eq!(site.hub.count(door, &path).requests, 2, "{source}");
        assert_eq!(site.hub.count(Door::Cdn, Q8).requests, 7, "{source}");
    }
}

#[tokio::test]
async fn many_reads_at_once_are_right() {
    let site = Site::start(true).await;
    for (_, source) in site.sources() {
        let origin = site.open(&source).await;
        let reads = (0..64_u64).map(|n| {
            let origin = origin.clone();
            tokio::spawn(async move { read(&origin, Q8, Some(n * 6000..(n + 1) * 6000)).await.unwrap() })
        });
        let mut whole = Vec::new();
        for task in reads.collect::<Vec<_>>() {
            whole.extend(task.await.unwrap());
        }
        assert_eq!(whole, gguf(8, 100_000)[..384_000], "{source}");
    }
}

#[tokio::test]
async fn private_places_want_their_credential_and_say_so() {
    let site = Site::start(true).await;
    let keys = || Keys {
        token: Some("hf_good".to_owned()),
        s3: Some(("AKID".to_owned(), "se/cr+et".to_owned(), Some("ses:sion==".to_owned()))),
        registry: Some(("robot$x".to_owned(), "pass:word".to_owned())),
        ..Keys::default()
    };
    site.hub.set_keys(keys());
    let [_, s3, ..] = &site.sources()[..] else { panic!() };
    assert_eq!(s3.0, Door::S3);
    for ((_, source), good, bad) in [
        (&site.sources()[0], "hf_good", "hf_bad"),
        (&site.sources()[1], "AKID:se/cr+et:ses:sion==", "AKID:wrong:ses:sion=="),
        (&site.sources()[2], "robot$x:pass:word", "robot$x:wrong"),
    ] {
        let found = async |credential: Option<&str>| {
            let secret = credential.and_then(secret);
            resolve(&parse(source), "Q8_0", &[], secret.as_ref(), &site.access()).await
        };
        let model = found(Some(good)).await.unwrap_or_else(|error| panic!("{source}: {}", chain(&error)));
        let origin = Origin::open(&model.source, secret(good).as_ref(), &site.access()).await.unwrap();
        assert_eq!(read(&origin, Q8, Some(0..4)).await.unwrap(), b"GGUF");
        let error = found(None).await.unwrap_err();
        assert!(
            matches!(error, ResolveError::Transfer(TransferError::NeedsCredential { .. })),
            "{source}: {error:?}"
        );
        assert!(error.to_string().contains("model.credentials"), "{error}");
        let error = found(Some(bad)).await.unwrap_err();
        assert!(matches!(error, ResolveError::Transfer(TransferError::Denied { .. })), "{source}: {error:?}");
        assert!(!error.is_transient());
        assert!(
            !format!("{error:?} {error}").contains("wrong:") && !error.to_string().contains("hf_bad"),
            "{error:?}"
        );
    }
    // In the middle: the token is no longer good.
    let credential = secret("hf_good");
    let origin =
        Origin::open(&parse(&site.sources()[0].1), credential.as_ref(), &site.access()).await.unwrap();
    site.hub.set_keys(Keys { token: Some("hf_new".to_owned()), ..keys() });
    let error = read(&origin, Q8, Some(0..4)).await.unwrap_err();
    assert!(
        matches!(error, TransferError::Denied { .. }) && error.to_string().contains("expired"),
        "{error}"
    );
    // A registry's own tokens are renewed by whoever holds the name and password.
    let credential = secret("robot$x:pass:word");
    let origin =
        Origin::open(&parse(&site.sources()[2].1), credential.as_ref(), &site.access()).await.unwrap();
    site.hub.expire_tokens();
    assert_eq!(read(&origin, Q8, Some(0..4)).await.unwrap(), b"GGUF");
}

#[tokio::test]
async fn a_gated_repository_says_what_to_do() {
    let site = Site::start(false).await;
    site.hub.set_keys(Keys { gated: true, ..Keys::default() });
    let error = site.resolve(&format!("hf://{REPO}"), "Q8_0").await.unwrap_err();
    assert!(error.to_string().contains("`owner/tiny` is gated: accept its terms"), "{error}");
}

#[tokio::test]
async fn credentials_of_another_form_are_named() {
    let site = Site::start(false).await;
    for (source, bad, expected) in [
        (format!("s3://{REPO}"), "only-one-part", "ACCESS_KEY:SECRET_KEY"),
        (format!("hf://{REPO}"), "user:password", "a hub's token"),
        (format!("{}{REPO}/", site.hub.url(Door::Web)), "two\nlines", "a token or USER:PASSWORD"),
    ] {
        let error = Origin::open(&parse(&source), secret(bad).as_ref(), &site.access()).await.err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let site = Site::start(false).await;
    for (source, expected) in [
        ("hf://owner/other".to_owned(), "hf://owner/other` does not exist"),
        (format!("hf://{REPO}@v9"), "has no revision `v9`"),
        (format!("hf://{REPO}@{}", "0".repeat(40)), "has no revision"),
        (format!("hf://{REPO}/nothing"), "does not exist"),
        ("s3://owner/other".to_owned(), "has no SHA256SUMS"),
        ("oci://registry.example/owner/other".to_owned(), "does not exist"),
        (format!("oci://registry.example/{REPO}@sha256:{}", "0".repeat(64)), "does not exist"),
        (format!("{}owner/other/", site.hub.url(Door::Web)), "has no SHA256SUMS"),
        (format!("hf://{REPO}/tiny-Q3_K.gguf"), "no sha256"),
    ] {
        let error = site.resolve(&source, "Q8_0").await.unwrap_err();
        assert!(error.to_string().contains(expected), "{source}: {error}");
        assert!(!error.is_transient(), "{source}: {error:?}");
    }
    let error = site.resolve(&format!("hf://{REPO}"), "Q5_K").await.unwrap_err();
    assert!(error.to_string().contains(Q8), "{error}");
}

#[tokio::test]
async fn files_that_a_manifest_lists_need_no_list_of_the_place() {
    let site = Site::start(false).await;
    let sha256 = Content::of(gguf(8, 100_000)).sha256().parse().unwrap();
    let listed = [ListedFile { name: Q8.to_owned(), sha256 }];
    for (_, source) in site.sources() {
        site.hub.always(Door::Web, "SHA256SUMS", tandem_hub::Fault::Status(404));
        let model = resolve(&parse(&source), "", &listed, None, &site.access()).await.unwrap();
        assert_eq!(model.files[0].sha256, sha256, "{source}");
    }
}

#[tokio::test]
async fn quants_of_a_repository_are_listed_with_their_sizes() {
    let site = Site::start(false).await;
    for (_, source) in site.sources() {
        let listed = quants(&parse(&source), None, &site.access()).await.unwrap();
        let seen: Vec<_> =
            listed.iter().map(|quant| (quant.quant.as_str(), quant.files.len(), quant.bytes())).collect();
        let (q4, q8) = (2 * gguf(4, 1000).len() as u64, gguf(8, 100_000).len() as u64);
        assert_eq!(seen, [("UD-Q4_K_XL", 2, q4), ("Q8_0", 1, q8)], "{source}");
        assert!(listed.iter().flat_map(|quant| &quant.files).all(|file| file.sha256.is_some()));
        // What is listed can be written into a manifest.
        for quant in listed {
            assert!(site.resolve(&source, &quant.quant).await.is_ok(), "{source} {}", quant.quant);
        }
    }
    let one = quants(&parse(&format!("hf://{REPO}/{Q8}")), None, &site.access()).await.unwrap();
    assert_eq!(one.len(), 1);
}

#[tokio::test]
async fn a_sparse_file_of_many_gigabytes_is_headed_at_once() {
    let mut writer = tandem_gguf::Writer::new();
    writer.set("general.architecture", "llama").declare("t", &[1 << 20, 1 << 15], tandem_gguf::GgmlType::F32);
    let (header, length) = writer.header().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.gguf");
    let file = std::fs::File::create(&path).unwrap();
    std::io::Write::write_all(&mut &file, &header).unwrap();
    file.set_len(length).unwrap();
    let site = Site::start(false).await;
    site.hub.publish("owner/big", [("big-F32.gguf", Content::declared(&path, &"ab".repeat(32)).unwrap())]);
    let model = site.resolve("hf://owner/big", "F32").await.unwrap();
    assert_eq!((model.files[0].bytes, model.headers[0].tensors[0].bytes), (length, 1 << 37));
    assert!(site.hub.bytes_sent() <= 1 << 20, "{}", site.hub.bytes_sent());
}

#[tokio::test]
async fn nobody_there_is_an_error_and_no_wait() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    drop(rustls::crypto::ring::default_provider().install_default());
    let access = Access::default().retrying(1, std::time::Duration::from_millis(1));
    let error = resolve(&parse(&format!("http://{closed}/")), "Q8_0", &[], None, &access).await.unwrap_err();
    assert!(matches!(error, ResolveError::Transfer(TransferError::Http { .. })), "{error:?}");
    assert!(error.is_transient());
}
