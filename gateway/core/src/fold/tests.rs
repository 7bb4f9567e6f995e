use proptest::prelude::*;

use super::*;

fn token(bytes: &[u8]) -> Token {
    Token { id: 7, bytes: bytes.to_vec(), logprob: -0.5, top: Vec::new(), ends_turn: false }
}

/// Everything that a client would have put together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    text: String,
    reasoning: String,
    calls: Vec<(String, String, String)>,
    finish: Option<FinishReason>,
}

impl Read {
    fn take(&mut self, delta: Delta) {
        self.text += &delta.text;
        self.reasoning += &delta.reasoning;
        for call in delta.tool_calls {
            match call {
                ToolCallDelta::Begin { index, id, name } => {
                    assert_eq!(index as usize, self.calls.len());
                    self.calls.push((id, name, String::new()));
                }
                ToolCallDelta::Arguments { index, text } => self.calls[index as usize].2 += &text,
            }
        }
        assert!(delta.finish.is_none() || self.finish.is_none(), "finished twice");
        self.finish = self.finish.or(delta.finish);
    }
}

fn read<'a>(format: &Format, opens_thinking: bool, pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let mut fold = Fold::new(format.clone());
    fold.begin(&Prompt { tokens: 3, cached_tokens: 0, opens_thinking });
    let mut read = Read::default();
    for piece in pieces {
        read.take(fold.push(&token(piece)));
    }
    read.take(fold.finish(FinishReason::Stop));
    read
}

fn chat(stop: &[&str]) -> Format {
    Format { stop: stop.iter().map(|s| (*s).to_owned()).collect(), thoughts: true, tools: true }
}

fn plain(stop: &[&str]) -> Format {
    Format { thoughts: false, tools: false, ..chat(stop) }
}

#[test]
fn text_before_a_stop_string_is_given_out_and_nothing_of_it() {
    let mut fold = Fold::new(plain(&["END"]));
    assert_eq!(fold.push(&token(b"one E")).text, "one ");
    assert_eq!(fold.push(&token(b"N")).text, "");
    assert_eq!(fold.push(&token(b"T EN")).text, "ENT ");
    let last = fold.push(&token(b"D two"));
    assert_eq!((last.text.as_str(), last.finish), ("", Some(FinishReason::Stop)));
    assert!(fold.push(&token(b"three")).is_empty());
    assert!(fold.finish(FinishReason::Length).is_empty());
    assert_eq!(fold.usage().completion_tokens, 4, "what comes after the stop is not billed");
}

#[test]
fn what_looked_like_a_stop_string_comes_with_the_end() {
    let mut fold = Fold::new(plain(&["END"]));
    assert_eq!(fold.push(&token(b"the EN")).text, "the ");
    let last = fold.finish(FinishReason::Length);
    assert_eq!((last.text.as_str(), last.finish), ("EN", Some(FinishReason::Length)));
}

#[test]
fn thoughts_are_split_off_whether_the_prompt_or_the_answer_opens_them() {
    let opened = read(&chat(&[]), true, [b"hm, <b".as_slice(), b"></thi", b"nk>yes"]);
    assert_eq!((opened.reasoning.as_str(), opened.text.as_str()), ("hm, <b>", "yes"));
    let own = read(&chat(&[]), false, [b" \n<th".as_slice(), b"ink>hm</think>yes"]);
    assert_eq!((own.reasoning.as_str(), own.text.as_str()), ("hm", "yes"));
    let quoted = read(&chat(&[]), false, [b"write <think> here".as_slice()]);
    assert_eq!(quoted.text, "write <think> here");
    let unclosed = read(&chat(&[]), true, [b"hm".as_slice()]);
    assert_eq!((unclosed.reasoning.as_str(), unclosed.text.as_str()), ("hm", ""));
    let raw = read(&plain(&[]), true, [b"hm</think>yes".as_slice()]);
    assert_eq!(raw.text, "hm</think>yes", "a plain completion is given as it is");
}

#[test]
fn stop_strings_do_not_cut_thoughts() {
    let read = read(&chat(&["\n"]), true, [b"a\nb</think>c\nd".as_slice()]);
    assert_eq!((read.reasoning.as_str(), read.text.as_str()), ("a\nb", "c"));
}

#[test]
fn another_prompt_may_take_over_before_the_first_token_only() {
    let mut fold = Fold::new(chat(&[]));
    fold.begin(&Prompt { tokens: 5, cached_tokens: 0, opens_thinking: true });
    fold.begin(&Prompt { tokens: 6, cached_tokens: 2, opens_thinking: false });
    assert_eq!(fold.push(&token(b"x")).text, "x");
    assert_eq!(
        fold.usage(),
        Usage { prompt_tokens: 6, cached_tokens: 2, completion_tokens: 1, reasoning_tokens: 0 }
    );
}

const CALLS: &str = "Let me look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:2\
    <|tool_call_argument_begin|>{\"city\": \"Zürich\"}<|tool_call_end|><|tool_call_begin|>functions.a:b:3\
    <|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>";

#[test]
fn tool_calls_keep_the_ids_that_the_model_wrote() {
    let expected = [
        ("functions.get_weather:2".to_owned(), "get_weather".to_owned(), "{\"city\": \"Zürich\"}".to_owned()),
        ("functions.a:b:3".to_owned(), "a:b".to_owned(), "{}".to_owned()),
    ];
    let bytes = CALLS.as_bytes();
    for thinking in [false, true] {
        let read = read(&chat(&[]), thinking, bytes.chunks(3));
        assert_eq!(read.calls, expected);
        assert_eq!(read.finish, Some(FinishReason::ToolCalls));
        let before = if thinking { &read.reasoning } else { &read.text };
        assert_eq!(before, "Let me look.", "a call inside unclosed thoughts is a call");
    }
    let singular = CALLS.replace("tool_calls_section", "tool_call_section");
    assert_eq!(read(&chat(&[]), false, [singular.as_bytes()]).calls, expected);
    let untold = read(&Format { tools: false, ..chat(&[]) }, false, [bytes]);
    assert_eq!(untold.text, CALLS, "who gave no tools gets text");
}

#[test]
fn half_a_tool_call_is_given_as_far_as_it_came() {
    let cut = CALLS.find("Zürich").unwrap();
    let mut fold = Fold::new(chat(&[]));
    let mut read = Read::default();
    read.take(fold.push(&token(&CALLS.as_bytes()[..cut])));
    read.take(fold.finish(FinishReason::Length));
    assert_eq!(read.calls[0].2, "{\"city\": \"");
    assert_eq!(read.finish, Some(FinishReason::Length));
}

/// Reads byte by byte with no cleverness: what stop strings mean.
fn cut_at_first_stop(text: &str, stops: &[String]) -> String {
    let mut so_far = String::new();
    for c in text.chars() {
        so_far.push(c);
        if let Some(stop) =
            stops.iter().filter(|stop| so_far.ends_with(stop.as_str())).max_by_key(|stop| stop.len())
        {
            so_far.truncate(so_far.len() - stop.len());
            return so_far;
        }
    }
    so_far
}

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => "[ab \n<]{1,3}".prop_map(String::into_bytes),
        2 => prop_oneof![Just("😀"), Just("ü"), Just("</think>"), Just("<think>"), Just("<|tool_calls_section_begin|>"),
            Just("<|tool_call_begin|>"), Just("<|tool_call_argument_begin|>"), Just("<|tool_call_end|>"),
            Just("<|tool_calls_section_end|>")].prop_map(|text| text.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 1..4),
    ];
    proptest::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

fn stops() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec("[ab \n<😀ü]{1,4}", 0..4)
}

proptest! {
    #[test]
    fn however_the_bytes_are_cut_into_tokens_the_client_reads_the_same(
        bytes in pieces(), stop in stops(), thinking: bool, tools: bool, thoughts: bool,
        cuts in proptest::collection::vec(1usize..6, 1..8),
    ) {
        let format = Format { stop, thoughts, tools };
        let whole = read(&format, thinking, [bytes.as_slice()]);
        prop_assert_eq!(&read(&format, thinking, bytes.chunks(1)), &whole);
        let mut rest = bytes.as_slice();
        let mut tokens = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break; }
            let (head, tail) = rest.split_at((*cut).min(rest.len()));
            tokens.push(head);
            rest = tail;
        }
        prop_assert_eq!(&read(&format, thinking, tokens), &whole);
    }

    #[test]
    fn a_plain_completion_is_the_text_up_to_the_stop_string_that_is_complete_first(bytes in pieces(), stop in stops()) {
        let expected = cut_at_first_stop(&String::from_utf8_lossy(&bytes), &stop);
        let format = Format { stop, thoughts: false, tools: false };
        prop_assert_eq!(read(&format, false, bytes.chunks(2)).text, expected);
    }
}
