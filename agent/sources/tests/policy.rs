//! What may be read, from where, and who gets to see a credential.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod site;

use site::{Q8, REPO, Site, gguf, parse, read, secret};
use tandem_hub::{Content, Door, Fault};
use tandem_sources::{Access, Origin, ResolveError, TransferError, quants, resolve};

fn redirect(error: &TransferError) -> bool {
    matches!(error, TransferError::Redirect { .. })
}

#[tokio::test]
async fn an_allow_list_is_asked_before_anything_else() {
    let site = Site::start(false).await;
    let access = site.access().allowing(&format!("hf://{REPO}")).unwrap();
    let allowed = format!("hf://{REPO}@main");
    assert!(resolve(&parse(&allowed), "Q8_0", &[], None, &access).await.is_ok());
    site.hub.reset_counts();
    for source in [format!("s3://{REPO}"), "hf://owner/tiny-2".to_owned(), "file:///etc/".to_owned()] {
        let error = resolve(&parse(&source), "Q8_0", &[], None, &access).await.unwrap_err();
        assert!(matches!(error, ResolveError::Transfer(TransferError::NotAllowed { .. })), "{error:?}");
        assert!(error.to_string().contains("`hf://owner/tiny`"), "{error}");
        assert!(quants(&parse(&source), None, &access).await.is_err());
        assert!(Origin::open(&parse(&source), None, &access).await.is_err());
    }
    assert!(Door::ALL.iter().all(|door| site.hub.count(*door, "").requests == 0));
}

#[tokio::test]
async fn redirects_are_followed_five_times_and_not_into_the_open() {
    let site = Site::start(true).await;
    let elsewhere = Site::start(false).await;
    let web = site.hub.url(Door::Web);
    let origin = site.open(&format!("{web}{REPO}/")).await;
    let redirected = async |to: String| {
        site.hub.misbehave(Door::Web, Q8, [Fault::Redirect(to)]);
        read(&origin, Q8, Some(0..4)).await
    };
    // Elsewhere on this host, and on another port of it.
    assert_eq!(redirected(format!("/{REPO}/{Q8}")).await.unwrap(), b"GGUF");
    let other = Site::start(true).await;
    let error = redirected(format!("{}{REPO}/{Q8}", other.hub.url(Door::Web))).await.unwrap_err();
    assert!(matches!(error, TransferError::Http { .. }), "another authority: {error:?}");
    for to in [
        format!("{}{REPO}/{Q8}", elsewhere.hub.url(Door::Web)),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
        "https://[fd00:ec2::254]/".to_owned(),
        "https://u:p@127.0.0.1/".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        let error = redirected(to.clone()).await.unwrap_err();
        assert!(redirect(&error) && !error.is_transient(), "{to}: {error:?}");
    }
    assert_eq!(elsewhere.hub.count(Door::Web, "").requests, 0);
    site.hub.reset_counts();
    site.hub.always(Door::Web, "loop.gguf", Fault::Redirect("loop.gguf".to_owned()));
    let error = read(&origin, "loop.gguf", Some(0..4)).await.unwrap_err();
    assert!(redirect(&error) && error.to_string().contains("more than five times"), "{error}");
    assert_eq!(site.hub.count(Door::Web, "loop.gguf").requests, 6);
}

#[tokio::test]
async fn a_credential_is_shown_to_nobody_else() {
    let site = Site::start(true).await;
    // The store answers 400 to whoever shows it a credential.
    let credential = secret("name:password");
    let web = site.hub.url(Door::Web);
    let origin =
        Origin::open(&parse(&format!("{web}{REPO}/")), credential.as_ref(), &site.access()).await.unwrap();
    let hub = site.open(&format!("hf://{REPO}")).await;
    let link = {
        // A link to the store as the hub gives it, by looking where a read ends up.
        assert!(read(&hub, Q8, Some(0..4)).await.is_ok());
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        let client =
            client.tls_certs_only([reqwest::Certificate::from_pem(site.hub.ca_pem().as_bytes()).unwrap()]);
        let url = format!("{}{REPO}/resolve/main/{Q8}", site.hub.url(Door::Hub));
        let response = client.build().unwrap().get(url).send().await.unwrap();
        response.headers()["location"].to_str().unwrap().to_owned()
    };
    site.hub.misbehave(Door::Web, Q8, [Fault::Redirect(link)]);
    assert_eq!(read(&origin, Q8, Some(0..4)).await.unwrap(), b"GGUF");
    assert_eq!(format!("{credential:?}"), "Some(Secret(…))");
}

#[tokio::test]
async fn names_that_lead_to_metadata_or_nowhere_are_not_asked() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let access = Access::default().retrying(0, Default::default());
    let access = access.naming("models.example", vec!["169.254.169.254".parse().unwrap()]);
    for source in ["https://models.example/k2/", "oci://models.example/k2"] {
        let error = Origin::open(&parse(source), None, &access).await.err().unwrap();
        assert!(matches!(error, TransferError::ForbiddenAddress { .. }), "{error:?}");
    }
    let mirrored = access.mirrored("hf://=https://models.example/").unwrap();
    let error = Origin::open(&parse("hf://o/r"), None, &mirrored).await.err().unwrap();
    assert!(matches!(error, TransferError::ForbiddenAddress { .. }), "{error:?}");
}

#[tokio::test]
async fn a_name_is_looked_up_once_and_its_certificate_must_fit() {
    let site = Site::start(true).await;
    let port = site.hub.address(Door::Web).rsplit(':').next().unwrap().to_owned();
    let here = vec!["127.0.0.1".parse().unwrap()];
    let access = site.access().naming("models.example", here.clone()).naming("stranger.example", here);
    let source = parse(&format!("https://models.example:{port}/{REPO}/"));
    assert!(resolve(&source, "Q8_0", &[], None, &access).await.is_ok());
    let stranger = parse(&format!("https://stranger.example:{port}/{REPO}/"));
    let error = resolve(&stranger, "Q8_0", &[], None, &access).await.unwrap_err();
    assert!(matches!(error, ResolveError::Transfer(TransferError::Http { .. })), "{error:?}");
    let untrusting = Access::default().retrying(0, Default::default());
    let error =
        resolve(&parse(&format!("{}{REPO}/", site.hub.url(Door::Web))), "Q8_0", &[], None, &untrusting).await;
    assert!(matches!(error, Err(ResolveError::Transfer(TransferError::Http { .. }))));
    assert!(Access::default().trusting(b"no certificate").is_err());
}

#[tokio::test]
async fn mirrors_are_tried_in_order_and_keep_to_one_revision() {
    let (one, two) = (Site::start(false).await, Site::start(false).await);
    two.hub.publish(REPO, [(Q8, Content::of(gguf(99, 7)))]);
    two.hub.publish("owner/second", site::files());
    let access = Access::default().retrying(2, std::time::Duration::from_millis(1));
    let access = access.mirrored(&format!("hf://={}", one.hub.url(Door::Hub))).unwrap();
    let access = access.mirrored(&format!("hf://={}", two.hub.url(Door::Hub))).unwrap();
    let source = parse(&format!("hf://{REPO}"));
    // The first one's main counts, though the second one's is newer.
    let model = resolve(&source, "Q8_0", &[], None, &access).await.unwrap();
    assert_eq!(model.source.to_string(), format!("hf://{REPO}@{}", one.commit));
    assert_eq!(two.hub.count(Door::Cdn, "").requests, 0);
    // While the first is in trouble, the second has the same files of the same commit.
    let origin = Origin::open(&source, None, &access).await.unwrap();
    one.hub.always(Door::Cdn, Q8, Fault::Status(500));
    assert_eq!(read(&origin, Q8, None).await.unwrap(), gguf(8, 100_000));
    assert_eq!(two.hub.count(Door::Cdn, Q8).requests, 1);
    // What only the second has comes from there.
    assert!(resolve(&parse("hf://owner/second"), "Q8_0", &[], None, &access).await.is_ok());
    // And when the first is gone altogether.
    drop(one);
    let model = resolve(&model.source, "Q8_0", &[], None, &access).await.unwrap();
    assert_eq!(model.files[0].bytes, gguf(8, 100_000).len() as u64);
}

#[tokio::test]
async fn plain_folders_have_mirrors_too() {
    let site = Site::start(true).await;
    let rule = format!("https://models.example/pub/={}{}/", site.hub.url(Door::Web), "owner");
    let access = site.access().mirrored(&rule).unwrap();
    let model =
        resolve(&parse("https://models.example/pub/tiny/"), "Q8_0", &[], None, &access).await.unwrap();
    assert_eq!(model.source.to_string(), "https://models.example/pub/tiny/");
    let rule = format!("s3://={}", site.hub.url(Door::S3));
    let access = Access::default().trusting(site.hub.ca_pem().as_bytes()).unwrap().mirrored(&rule).unwrap();
    assert!(resolve(&parse(&format!("s3://{REPO}")), "Q8_0", &[], None, &access).await.is_ok());
}
