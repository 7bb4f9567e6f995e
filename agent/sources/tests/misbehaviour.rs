//! Places that misbehave: each fault has its own sentence, and those that pass are tried again.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod site;

use std::time::Duration;

use site::{Q8, REPO, Site, chain, gguf, parse, read, secret};
use tandem_hub::{Chaos, Content, Door, Fault, Keys};
use tandem_sources::{Origin, ResolveError, TransferError, resolve};

/// What a fault while a range is read comes to, over each protocol.
async fn fault(fault: Fault) -> Vec<TransferError> {
    let site = Site::start(false).await;
    let mut errors = Vec::new();
    for (door, source) in site.sources() {
        let origin = site.open(&source).await;
        site.hub.misbehave(door, Q8, [fault.clone()]);
        errors.push(read(&origin, Q8, Some(100..50_000)).await.unwrap_err());
        // The next one goes well, over whatever is left of the connection.
        assert_eq!(read(&origin, Q8, Some(100..50_000)).await.unwrap(), gguf(8, 100_000)[100..50_000]);
    }
    errors
}

#[tokio::test]
async fn each_fault_of_a_body_has_its_sentence() {
    for (wrong, expected, transient) in [
        (Fault::Whole, "is sent whole, though a range of it was asked for", true),
        (Fault::WrongRange, "as its range, and bytes 100-49999 were asked for", true),
        (Fault::Short { after: 400 }, "ends 49500 bytes before it should", true),
        (Fault::Endless, "goes on after it should have ended", true),
        (Fault::Cut { after: 1000 }, "could not be fetched", true),
        (Fault::Cut { after: 0 }, "could not be fetched", true),
        (Fault::Status(500), "answers 500", true),
        (Fault::Status(503), "answers 503", true),
        (Fault::Status(408), "answers 408", true),
        (Fault::TooMany { retry_after: 7 }, "answers 429", true),
        (Fault::Status(418), "answers 418", false),
        (Fault::Status(451), "answers 451", false),
    ] {
        for error in fault(wrong.clone()).await {
            assert!(chain(&error).contains(expected), "{wrong:?}: {}", chain(&error));
            assert_eq!(error.is_transient(), transient, "{wrong:?}: {error:?}");
            assert!(!chain(&error).contains("Signature"), "{}", chain(&error));
        }
    }
}

#[tokio::test]
async fn a_stall_ends_by_itself() {
    for error in fault(Fault::Stall { after: 1000 }).await {
        assert!(matches!(error, TransferError::Http { .. }) && error.is_transient(), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_is_given_the_time_that_it_asks_for_within_a_bound() {
    let second = Some(Duration::from_secs(1));
    for error in fault(Fault::TooMany { retry_after: 7 }).await {
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        assert_eq!(error.wait(second), Some(Duration::from_secs(7)));
        assert_eq!(error.wait(Some(Duration::from_secs(30))), Some(Duration::from_secs(30)));
        assert_eq!(error.wait(None), None, "no tries are left");
    }
    for error in fault(Fault::TooMany { retry_after: 1 << 40 }).await {
        assert_eq!(error.wait(second), Some(Duration::from_secs(120)));
    }
    for error in fault(Fault::Status(503)).await {
        assert_eq!(error.wait(second), second);
    }
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_stays_is_not() {
    let site = Site::start(false).await;
    for (door, source) in site.sources() {
        site.hub.behave();
        site.hub.misbehave(
            door,
            Q8,
            [Fault::Status(502), Fault::Cut { after: 9 }, Fault::TooMany { retry_after: 0 }],
        );
        let model = site.resolve(&source, "Q8_0").await;
        assert!(model.is_ok(), "{source}: {:?}", model.err());
        site.hub.reset_counts();
        site.hub.always(door, Q8, Fault::Status(502));
        let error = site.resolve(&source, "Q8_0").await.unwrap_err();
        assert!(error.is_transient(), "{source}: {error:?}");
        assert_eq!(site.hub.count(door, Q8).requests, 4, "{source}");
        site.hub.behave();
        site.hub.reset_counts();
        site.hub.always(door, Q8, Fault::Status(418));
        let error = site.resolve(&source, "Q8_0").await.unwrap_err();
        assert!(!error.is_transient(), "{source}: {error:?}");
        assert_eq!(site.hub.count(door, Q8).requests, 1, "{source}");
    }
}

#[tokio::test]
async fn lists_are_tried_again_too() {
    let site = Site::start(false).await;
    site.hub.misbehave(Door::Hub, "/revision/main", [Fault::Status(500)]);
    site.hub.misbehave(Door::Hub, &site.commit, [Fault::TooMany { retry_after: 0 }]);
    site.hub.misbehave(Door::Registry, "/manifests/latest", [Fault::Status(500)]);
    site.hub.misbehave(Door::Registry, "/token", [Fault::Status(500)]);
    site.hub.misbehave(Door::S3, "SHA256SUMS", [Fault::Cut { after: 5 }]);
    site.hub.misbehave(Door::Web, "SHA256SUMS", [Fault::Short { after: 0 }, Fault::Cut { after: 5 }]);
    for (door, source) in site.sources() {
        let model = site.resolve(&source, "Q8_0").await;
        // A list that is short without a length can't be told from a short list.
        assert_eq!(model.is_err(), door == Door::Web, "{source}: {:?}", model.err());
    }
}

#[tokio::test]
async fn endless_answers_are_cut_off() {
    let site = Site::start(false).await;
    for (door, path, source) in
        [(Door::Web, "SHA256SUMS", &site.sources()[3].1), (Door::S3, "SHA256SUMS", &site.sources()[1].1)]
    {
        site.hub.always(door, path, Fault::Endless);
        let error = site.resolve(source, "Q8_0").await.unwrap_err();
        assert!(matches!(error, ResolveError::HugeSums(_)), "{error:?}");
        let sent = site.hub.count(door, path).bytes;
        assert!(sent < 16 << 20, "{sent} bytes were taken");
    }
    let huge = format!("[{}]", "0,".repeat(5 << 20));
    site.hub.set_manifest(REPO, &huge);
    let error = site.resolve(&site.sources()[2].1, "Q8_0").await.unwrap_err();
    assert!(matches!(error, ResolveError::Transfer(TransferError::TooLarge { .. })), "{error:?}");
}

#[tokio::test]
async fn another_revision_than_the_pinned_one_is_refused() {
    let site = Site::start(false).await;
    let hub = site.open(&format!("hf://{REPO}")).await;
    site.hub.misbehave(Door::Hub, Q8, [Fault::OtherCommit]);
    let error = read(&hub, Q8, Some(0..4)).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::ChangedRevision { expected, .. } if *expected == site.commit),
        "{error}"
    );
    // A manifest that isn't what its digest says.
    let digest = site.hub.manifest_digest(REPO).unwrap();
    site.hub.set_manifest(REPO, "{\"layers\":[]}");
    let error = site.resolve(&format!("oci://registry.example/{REPO}@{digest}"), "Q8_0").await.unwrap_err();
    assert!(matches!(error, ResolveError::Transfer(TransferError::ChangedRevision { .. })), "{error:?}");
}

#[tokio::test]
async fn a_file_that_is_longer_or_shorter_than_listed_is_refused() {
    let site = Site::start(false).await;
    let file = Content::of(gguf(8, 10));
    let layer = format!(
        r#"{{"layers":[{{"mediaType":"application/vnd.docker.ai.gguf.v3","digest":"sha256:{}","size":7}}]}}"#,
        file.sha256()
    );
    site.hub.publish("owner/odd", [("x.gguf", file.clone())]);
    site.hub.set_manifest("owner/odd", &layer);
    let error = site.resolve("oci://registry.example/owner/odd", "Q8_0").await.unwrap_err();
    assert!(matches!(error, ResolveError::WrongLength { listed: 7, .. }), "{error:?}");
    site.hub.set_manifest("owner/odd", r#"{"manifests":[{"mediaType":"x"}]}"#);
    let error = site.resolve("oci://registry.example/owner/odd", "Q8_0").await.unwrap_err();
    assert!(error.to_string().contains("index of several: name one of them by its digest"), "{error}");
    // With the right one it is a model, though nothing says its quant.
    site.hub.set_manifest("owner/odd", &layer.replace(":7", &format!(":{}", file.len())));
    let model = site.resolve("oci://registry.example/owner/odd", "Q8_0").await.unwrap();
    assert_eq!(model.files[0].name, "model.gguf");
    let origin = Origin::open(&model.source, None, &site.access()).await.unwrap();
    assert_eq!(read(&origin, "model.gguf", None).await.unwrap(), gguf(8, 10));
}

#[tokio::test]
async fn a_bucket_in_another_region_is_told_apart() {
    let site = Site::start(false).await;
    let keys = Keys {
        s3: Some(("AKID".to_owned(), "secret".to_owned(), None)),
        region: Some("us-west-2".to_owned()),
        ..Keys::default()
    };
    site.hub.set_keys(keys);
    let source = parse(&site.sources()[1].1);
    let credential = secret("AKID:secret");
    let error = resolve(&source, "Q8_0", &[], credential.as_ref(), &site.access()).await.unwrap_err();
    assert!(error.to_string().contains("not in region `eu-north-1`, but in us-west-2"), "{error}");
    let access = site.access().s3(Some(&site.hub.url(Door::S3)), "us-west-2").unwrap();
    resolve(&source, "Q8_0", &[], credential.as_ref(), &access).await.unwrap();
}

#[tokio::test]
async fn by_chance_everything_goes_wrong_and_comes_right() {
    let site = Site::start(true).await;
    for (index, (_, source)) in site.sources().into_iter().enumerate() {
        let origin = site.open(&source).await;
        site.hub.chaos(Some(Chaos { seed: 7 + index as u64, percent: 40 }));
        let whole = gguf(8, 100_000);
        let (mut faults, mut flips) = (0, 0);
        for piece in 0..40_u64 {
            let range = piece * 10_000..(piece + 1) * 10_000;
            let expected = &whole[piece as usize * 10_000..][..10_000];
            for attempt in 0.. {
                assert!(attempt < 40, "{source}: piece {piece} never comes");
                match read(&origin, Q8, Some(range.clone())).await {
                    Ok(bytes) if bytes == expected => break,
                    // Only the digest can tell, which is not kept here.
                    Ok(bytes) => {
                        let wrong = bytes.iter().zip(expected).filter(|(a, b)| a != b).count();
                        assert_eq!((bytes.len(), wrong), (10_000, 1));
                        flips += 1;
                    }
                    Err(error) => {
                        assert!(error.is_transient(), "{error:?}");
                        faults += 1;
                    }
                }
            }
        }
        site.hub.chaos(None);
        assert!(faults > 5 && flips > 0, "{source}: {faults} faults, {flips} flips");
    }
}
