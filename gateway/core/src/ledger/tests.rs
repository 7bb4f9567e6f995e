use proptest::prelude::*;
use tandem_worker_api::{GenerateEvent, generate_event::Event};

use super::*;
use crate::script::{Script, undisturbed};

fn ledger() -> Ledger {
    Ledger::new("s", 0, Limits::default())
}

fn frame(script: &mut Script) -> Frame {
    match script.next() {
        Some(GenerateEvent { event: Some(Event::Frame(frame)) }) => frame,
        other => panic!("{other:?}"),
    }
}

/// Opens an attempt and has it started.
fn start(ledger: &mut Ledger, numerics_id: &'static str, salt: u32) -> (u32, Script) {
    let opening = ledger.open();
    let mut script = Script::new(&opening, numerics_id, salt, 50);
    let Some(GenerateEvent { event: Some(Event::Started(started)) }) = script.next() else { panic!() };
    ledger.started(opening.id.attempt, &started).unwrap();
    (opening.id.attempt, script)
}

fn committed(verdict: Verdict) -> Commit {
    match verdict {
        Verdict::Commit(commit) => commit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn whichever_attempt_speaks_next_first_wins() {
    let mut ledger = ledger();
    let (a, mut first) = start(&mut ledger, "x", 0);
    let (b, mut second) = start(&mut ledger, "x", 0);
    let zero = committed(ledger.offer(a, frame(&mut first)));
    assert_eq!((zero.index, zero.seam_exact, zero.prompt.map(|p| p.tokens)), (0, None, Some(3)));
    assert_eq!(ledger.offer(b, frame(&mut second)), Verdict::Stale, "said already, by the other");
    let one = committed(ledger.offer(b, frame(&mut second)));
    assert_eq!((one.index, one.seam_exact, one.prompt), (1, Some(true), None));
    assert_eq!(ledger.offer(a, frame(&mut first)), Verdict::Stale);
    assert_eq!(committed(ledger.offer(a, frame(&mut first))).seam_exact, Some(true));
    assert_eq!(ledger.len(), 3);
}

#[test]
fn a_resumed_attempt_of_other_numerics_goes_on_and_the_seam_says_so() {
    let mut ledger = ledger();
    let (a, mut first) = start(&mut ledger, "x", 0);
    for _ in 0..5 {
        committed(ledger.offer(a, frame(&mut first)));
    }
    ledger.close(a);
    let (b, mut second) = start(&mut ledger, "y", 99);
    let commit = committed(ledger.offer(b, frame(&mut second)));
    assert_eq!((commit.index, commit.seam_exact), (5, Some(false)));
    assert_eq!(ledger.offer(a, frame(&mut first)), Verdict::Stale, "a zombie's word");
    assert_eq!(ledger.numerics_id(), Some("y"));
}

#[test]
fn one_that_went_another_way_is_cancelled_at_the_first_word_of_it() {
    let mut ledger = ledger();
    let (a, mut first) = start(&mut ledger, "x", 0);
    let (b, mut second) = start(&mut ledger, "x", 99);
    committed(ledger.offer(a, frame(&mut first)));
    let verdict = ledger.offer(b, frame(&mut second));
    assert_eq!(verdict, Verdict::Cancel(Fault::Diverged { index: 0 }));
    assert_eq!(ledger.offer(b, frame(&mut second)), Verdict::Stale, "it is over");
}

#[test]
fn a_left_out_frame_is_a_gap_and_a_wrong_digest_diverges() {
    let mut ledger = ledger();
    let (a, mut first) = start(&mut ledger, "x", 0);
    frame(&mut first);
    let verdict = ledger.offer(a, frame(&mut first));
    assert_eq!(verdict, Verdict::Cancel(Fault::Gap { expected: 0, found: 1 }));

    let (b, mut second) = start(&mut ledger, "x", 0);
    let mut wrong = frame(&mut second);
    wrong.digest = PrefixDigest::of_prompt(&[1]).to_bytes();
    assert_eq!(ledger.offer(b, wrong), Verdict::Cancel(Fault::Diverged { index: 0 }));

    let (c, mut third) = start(&mut ledger, "x", 0);
    let short = Frame { digest: vec![1], ..frame(&mut third) };
    assert!(matches!(ledger.offer(c, short), Verdict::Cancel(Fault::Protocol(_))));
    assert!(ledger.is_empty());
}

#[test]
fn a_frame_of_another_attempt_stream_or_choice_is_nobodys() {
    let mut ledger = ledger();
    let (a, mut script) = start(&mut ledger, "x", 0);
    let good = frame(&mut script);
    for id in [
        None,
        Some(AttemptId { attempt: 9, ..ledger.id(a) }),
        Some(AttemptId { choice: 1, ..ledger.id(a) }),
        Some(AttemptId { stream: "t".to_owned(), ..ledger.id(a) }),
    ] {
        assert_eq!(ledger.offer(a, Frame { attempt: id, ..good.clone() }), Verdict::Stale);
    }
    committed(ledger.offer(a, good));
}

#[test]
fn another_prompt_can_take_over_only_before_the_first_token() {
    let mut ledger = ledger();
    let other = Started { prompt_digest: PrefixDigest::of_prompt(&[5]).to_bytes(), ..Started::default() };
    let (a, mut script) = start(&mut ledger, "x", 0);
    let early = ledger.open().id.attempt;
    ledger.started(early, &other).unwrap();
    committed(ledger.offer(a, frame(&mut script)));
    let late = ledger.open().id.attempt;
    assert_eq!(ledger.started(late, &other), Err(Fault::Diverged { index: 0 }));
}

#[test]
fn the_choice_ends_with_the_turn_or_the_limit_without_a_last_word() {
    for (ignore_eos, max_tokens, expected) in
        [(false, 0, Some(FinishReason::Stop)), (true, 0, None), (true, 1, Some(FinishReason::Length))]
    {
        let mut ledger = Ledger::new("s", 0, Limits { max_tokens, ignore_eos });
        let (a, mut script) = start(&mut ledger, "x", 0);
        let last = Frame { end_of_generation: true, ..frame(&mut script) };
        assert_eq!(committed(ledger.offer(a, last)).finish, expected);
        if expected.is_some() {
            assert_eq!(ledger.offer(a, frame(&mut script)), Verdict::Stale, "nothing comes after the end");
        }
    }
}

#[test]
fn a_last_word_counts_only_from_one_that_knows_every_token() {
    let mut ledger = ledger();
    let say =
        |reason: finished::Reason, tokens| Finished { reason: reason.into(), tokens, message: String::new() };
    let (a, mut script) = start(&mut ledger, "x", 0);
    committed(ledger.offer(a, frame(&mut script)));
    assert_eq!(
        ledger.finished(a, &say(finished::Reason::Context, 2)),
        Ending::Elsewhere(finished::Reason::Failed)
    );
    assert_eq!(ledger.finished(a, &say(finished::Reason::Context, 1)), Ending::Stale, "it is over");
    let (b, _) = start(&mut ledger, "x", 0);
    assert_eq!(
        ledger.finished(b, &say(finished::Reason::Drained, 1)),
        Ending::Elsewhere(finished::Reason::Drained)
    );
    let (c, _) = start(&mut ledger, "x", 0);
    assert_eq!(ledger.finished(c, &say(finished::Reason::Context, 1)), Ending::Choice(FinishReason::Length));
}

proptest! {
    /// Attempts come, speak in any order, die and hang; what is committed is what one of them would have said alone.
    #[test]
    fn any_interleaving_commits_the_undisturbed_tokens(moves in proptest::collection::vec((0u8..8, 0usize..4), 1..200)) {
        let mut ledger = ledger();
        let mut voices: Vec<(u32, Script)> = Vec::new();
        let mut said = Vec::new();
        for (what, whom) in moves {
            match what {
                0 if voices.len() < 4 => voices.push(start(&mut ledger, "x", 0)),
                1 if !voices.is_empty() => {
                    let (attempt, _) = voices.swap_remove(whom % voices.len());
                    ledger.close(attempt);
                }
                _ if !voices.is_empty() => {
                    let whom = whom % voices.len();
                    let (attempt, script) = &mut voices[whom];
                    if let Some(GenerateEvent { event: Some(Event::Frame(frame)) }) = script.next()
                        && let Verdict::Commit(commit) = ledger.offer(*attempt, frame)
                    {
                        prop_assert_eq!(commit.index as usize, said.len());
                        said.push(commit.token.id);
                    }
                }
                _ => {}
            }
        }
        prop_assert_eq!(&said[..], &undisturbed(0, 50)[..said.len()]);
    }
}
