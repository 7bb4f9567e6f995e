use std::num::NonZeroU32;

use proptest::prelude::*;

use super::scripted::{Script, ScriptedModel};
use super::*;
use crate::sampling::Sampling;

const LIMITS: Limits = Limits { active: 8, waiting: 32, prefill_rows: 16 };
const END: u32 = 319;

fn scheduler_of(script: Script, limits: Limits) -> Scheduler<ScriptedModel> {
    Scheduler::new(ScriptedModel::new(script), BTreeSet::from([END]), limits).unwrap()
}

fn scheduler() -> Scheduler<ScriptedModel> {
    scheduler_of(Script::default(), LIMITS)
}

fn job(prompt: &[u32], max_tokens: u32) -> Job {
    Job {
        prompt: prompt.to_vec(),
        resume: None,
        sampling: Sampling::default(),
        seed: 11,
        choice: 0,
        max_tokens: NonZeroU32::new(max_tokens),
        ignore_end: true,
        top_logprobs: 0,
    }
}

/// The same job after `committed` of what it says.
fn resumed(job: &Job, committed: &[Token]) -> Job {
    let ids: Vec<u32> = committed.iter().map(|token| token.choice.id).collect();
    let digest = PrefixDigest::of_prompt(&job.prompt).then_all(&ids);
    Job { resume: Some(Resume { ids, digest }), ..job.clone() }
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Said {
    tokens: Vec<Token>,
    prefills: Vec<(u32, u32)>,
    finish: Option<(Finish, u32)>,
}

#[derive(Default)]
struct Record(BTreeMap<JobId, Said>);

impl Record {
    fn take(&mut self, id: JobId, event: Event) {
        let said = self.0.entry(id).or_default();
        assert_eq!(said.finish, None, "an event after Finished");
        match event {
            Event::Prefill { done, total } => said.prefills.push((done, total)),
            Event::Token(token) => said.tokens.push(token),
            Event::Finished { finish, tokens } => said.finish = Some((finish, tokens)),
        }
    }
}

fn run(scheduler: &mut Scheduler<ScriptedModel>, record: &mut Record) {
    let ticks = AtomicU64::new(0);
    while scheduler.step(&ticks, &mut |id, event| record.take(id, event)).unwrap() == Progress::Stepped {}
    let pages = scheduler.model().pages();
    assert_eq!(pages.free, pages.total, "pages leaked");
}

/// Runs jobs together; what each said, in order.
fn say_together(mut scheduler: Scheduler<ScriptedModel>, jobs: &[Job]) -> Vec<Said> {
    let ids: Vec<JobId> = jobs.iter().map(|job| scheduler.submit(job.clone()).unwrap()).collect();
    let mut record = Record::default();
    run(&mut scheduler, &mut record);
    ids.into_iter().map(|id| record.0.remove(&id).unwrap()).collect()
}

fn say(scheduler: Scheduler<ScriptedModel>, job: &Job) -> Said {
    say_together(scheduler, std::slice::from_ref(job)).remove(0)
}

#[test]
fn a_job_says_max_tokens_with_digests_that_chain() {
    let job = job(&[5, 6, 7], 20);
    let said = say(scheduler(), &job);
    assert_eq!(said.finish, Some((Finish::Length, 20)));
    assert_eq!(said.prefills, [(3, 3)]);
    let mut digest = PrefixDigest::of_prompt(&job.prompt);
    for (index, token) in said.tokens.iter().enumerate() {
        assert_eq!(token.index as usize, index);
        assert_eq!(token.digest, digest);
        digest = digest.then(token.choice.id);
    }
}

#[test]
fn seeds_and_choices_differ() {
    let base = job(&[5, 6, 7], 20);
    let others = [Job { seed: 12, ..base.clone() }, Job { choice: 1, ..base.clone() }];
    let said = say(scheduler(), &base).tokens;
    assert_eq!(say(scheduler(), &base).tokens, said);
    for other in others {
        assert_ne!(say(scheduler(), &other).tokens, said, "{other:?}");
    }
}

#[test]
fn resumed_at_every_index_it_says_the_same() {
    let mut job = job(&(0..30).collect::<Vec<_>>(), 40);
    job.sampling = Sampling::parse(
        &tandem_worker_api::Sampling {
            repetition_penalty: Some(1.2),
            frequency_penalty: Some(0.3),
            presence_penalty: Some(0.2),
            top_p: Some(0.95),
            ..Default::default()
        },
        &Default::default(),
        320,
    )
    .unwrap();
    job.top_logprobs = 3;
    let whole = say(scheduler(), &job);
    for index in 0..=whole.tokens.len() {
        let rest = say(scheduler(), &resumed(&job, &whole.tokens[..index]));
        assert_eq!(rest.tokens, whole.tokens[index..], "resumed at {index}");
        assert_eq!(rest.finish, whole.finish);
    }
}

/// What a takeover test must turn red for: each fault changes what a resumed job says.
#[test]
fn a_shifted_draw_and_a_zeroed_row_are_noticed() {
    let job = job(&(0..30).collect::<Vec<_>>(), 40);
    let whole = say(scheduler(), &job);
    let rest = resumed(&job, &whole.tokens[..20]);

    let mut shifted = scheduler();
    shifted.draw_shift = 1;
    assert_ne!(say(shifted, &rest).tokens, whole.tokens[20..]);

    for position in [0, 17, 35, 49] {
        let zeroed = scheduler_of(Script { zeroed_row: Some(position), ..Script::default() }, LIMITS);
        assert_ne!(say(zeroed, &rest).tokens, whole.tokens[20..], "row {position} zeroed");
    }
    let other = scheduler_of(Script { divergence: 1, ..Script::default() }, LIMITS);
    assert_ne!(say(other, &rest).tokens, whole.tokens[20..]);
}

#[test]
fn preemption_shows_nowhere_but_in_time() {
    let jobs: Vec<Job> = (0..6)
        .map(|seed| Job { seed, ..job(&(seed as u32..seed as u32 + 20).collect::<Vec<_>>(), 60) })
        .collect();
    let alone: Vec<Said> = jobs.iter().map(|job| say(scheduler(), job)).collect();
    // Six sequences of 80 tokens need 60 pages; there are 32.
    let crowded = scheduler_of(Script { pages: 32, ..Script::default() }, LIMITS);
    let together = say_together(crowded, &jobs);
    for (crowded, alone) in together.iter().zip(&alone) {
        assert_eq!(crowded.tokens, alone.tokens);
        assert_eq!(crowded.finish, alone.finish);
    }
    let again = together.iter().filter(|said| said.prefills.iter().any(|&(_, total)| total > 20)).count();
    assert!(again > 0, "nobody had to yield: the test proves nothing");
    assert!(together[0].prefills.iter().all(|&(_, total)| total == 20), "the oldest never yields");
}

#[test]
fn prompts_are_filled_in_bounded_steps_beside_decoding() {
    let mut scheduler = scheduler();
    let ticks = AtomicU64::new(0);
    let mut record = Record::default();
    let mut step = |scheduler: &mut Scheduler<_>| {
        scheduler.step(&ticks, &mut |id, event| record.take(id, event)).unwrap();
    };
    let first = scheduler.submit(job(&[1], 50)).unwrap();
    step(&mut scheduler);
    let second = scheduler.submit(job(&(0..40).collect::<Vec<_>>(), 50)).unwrap();
    for _ in 0..3 {
        step(&mut scheduler);
    }
    assert_eq!(record.0[&first].tokens.len(), 4, "decoding goes on in every step");
    assert_eq!(record.0[&second].prefills, [(16, 40), (32, 40), (40, 40)]);
    assert_eq!(record.0[&second].tokens.len(), 1);
}

#[test]
fn an_end_token_stops_unless_ignored() {
    let greedy = |ignore_end| Job { ignore_end, sampling: Sampling::greedy(), ..job(&[3, 4], 200) };
    let endless = say(scheduler(), &greedy(true));
    // Take what this script says at some index for the end of turn.
    let end = endless.tokens[30].choice.id;
    let first = endless.tokens.iter().position(|token| token.choice.id == end).unwrap();
    let ending = |script| Scheduler::new(ScriptedModel::new(script), BTreeSet::from([end]), LIMITS).unwrap();

    let said = say(ending(Script::default()), &greedy(false));
    assert_eq!(said.finish, Some((Finish::Stop, first as u32 + 1)));
    assert!(said.tokens.last().unwrap().ends_generation);

    let over = say(ending(Script::default()), &resumed(&greedy(false), &said.tokens));
    assert_eq!(over, Said { finish: said.finish, ..Said::default() }, "a turn that is over is not continued");
}

#[test]
fn the_context_ends_a_job_without_max_tokens() {
    let said = say(scheduler(), &Job { max_tokens: None, ..job(&[1, 2, 3, 4], 0) });
    assert_eq!(said.finish, Some((Finish::Context, 252)));
}

#[test]
fn impossible_jobs_are_refused() {
    let mut scheduler = scheduler();
    let long = vec![1; 250];
    let wrong = Resume { ids: vec![1], digest: PrefixDigest::of_prompt(&[9]) };
    for (job, refusal) in [
        (job(&[], 1), Refusal::EmptyPrompt),
        (job(&[320], 1), Refusal::UnknownToken { id: 320, last: 319 }),
        (job(&long, 7), Refusal::ContextLength { prompt: 250, max_tokens: 7, context: 256 }),
        (job(&vec![1; 256], 0), Refusal::PromptLength { prompt: 256, context: 256 }),
        (job(&[1], u32::MAX), Refusal::ContextLength { prompt: 1, max_tokens: u32::MAX, context: 256 }),
        (Job { resume: Some(wrong), ..job(&[1], 5) }, Refusal::Diverged),
    ] {
        assert_eq!(scheduler.submit(job), Err(refusal));
    }
    assert!(scheduler.submit(job(&long, 6)).is_ok());
}

#[test]
fn a_full_queue_and_a_draining_worker_refuse() {
    let mut scheduler = scheduler_of(Script::default(), Limits { waiting: 2, ..LIMITS });
    scheduler.submit(job(&[1], 5)).unwrap();
    scheduler.submit(job(&[2], 5)).unwrap();
    assert_eq!(scheduler.submit(job(&[3], 5)), Err(Refusal::Overloaded { waiting: 2 }));
    scheduler.drain();
    assert_eq!(scheduler.submit(job(&[3], 5)), Err(Refusal::Draining));
    let mut record = Record::default();
    run(&mut scheduler, &mut record);
    assert_eq!(record.0.len(), 2, "those that run go on");
}

#[test]
fn cancelled_and_drained_jobs_free_their_pages() {
    let mut scheduler = scheduler();
    let ticks = AtomicU64::new(0);
    let mut record = Record::default();
    let ids: Vec<JobId> = (0..10).map(|id| scheduler.submit(job(&[id], 50)).unwrap()).collect();
    scheduler.step(&ticks, &mut |id, event| record.take(id, event)).unwrap();
    assert_eq!((scheduler.active(), scheduler.waiting()), (8, 2));

    for id in [ids[0], ids[9], ids[9]] {
        scheduler.cancel(id, &mut |id, event| record.take(id, event));
    }
    assert_eq!(record.0[&ids[0]].finish, Some((Finish::Cancelled, 1)));
    assert_eq!(record.0[&ids[9]].finish, Some((Finish::Cancelled, 0)));
    assert_eq!(scheduler.end_all(Finish::Drained, &mut |id, event| record.take(id, event)), 8);
    run(&mut scheduler, &mut record);
    assert!(record.0.values().all(|said| said.finish.is_some()));
}

#[test]
fn a_poisoned_sequence_ends_alone() {
    // More than a step takes in, so that the poison is met before there are any logits.
    let long: Vec<u32> = (0..60).collect();
    let jobs = [job(&[1, 2], 30), job(&long, 30), job(&[4], 30)];
    let healthy = say_together(scheduler(), &jobs);
    let poisoned = say_together(scheduler_of(Script { poison: Some(7), ..Script::default() }, LIMITS), &jobs);
    assert_eq!(poisoned[1].finish, Some((Finish::NotFinite, 0)));
    for place in [0, 2] {
        // The others may say the poison too, later; up to there they are the same.
        let common = poisoned[place].tokens.len();
        assert!(common > 0);
        assert_eq!(poisoned[place].tokens, healthy[place].tokens[..common]);
    }
}

#[test]
fn a_pool_below_one_sequence_is_unusable() {
    let model = ScriptedModel::new(Script { pages: 31, ..Script::default() });
    let unusable = Scheduler::new(model, BTreeSet::new(), LIMITS).err();
    assert_eq!(unusable, Some(Unusable::PoolTooSmall { pages: 31, context: 256, needed: 32 }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever runs beside a job, however its prompt is cut, and whoever yields: it says what it says alone.
    #[test]
    fn neighbours_and_cuts_change_nothing(
        shapes in prop::collection::vec((1usize..60, 1u32..60, 0usize..60, 0u64..3), 1..12),
        pages in 32u32..80,
        prefill_rows in 1usize..40,
        active in 1usize..9,
        batch_rows in 8usize..64,
    ) {
        let limits = Limits { active, prefill_rows, ..LIMITS };
        let script = Script { pages, batch_rows, ..Script::default() };
        let mut wholes = Vec::new();
        let mut jobs = Vec::new();
        for &(prompt, max_tokens, committed, seed) in &shapes {
            let prompt: Vec<u32> = (0..prompt as u32).map(|id| (id * 7 + seed as u32) % 319).collect();
            let whole_job = Job { seed, ..job(&prompt, max_tokens) };
            let whole = say(scheduler(), &whole_job);
            let committed = committed.min(whole.tokens.len());
            jobs.push(resumed(&whole_job, &whole.tokens[..committed]));
            wholes.push((whole, committed));
        }
        let together = say_together(scheduler_of(script, limits), &jobs);
        for (said, (whole, committed)) in together.iter().zip(&wholes) {
            prop_assert_eq!(&said.tokens, &whole.tokens[*committed..]);
            prop_assert_eq!(said.finish, whole.finish);
        }
    }
}
