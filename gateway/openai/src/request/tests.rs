use serde_json::json;

use super::*;

fn error(result: Result<Parsed, ApiError>) -> Value {
    serde_json::to_value(result.unwrap_err().envelope()).unwrap()["error"].take()
}

fn chat_with(more: Value) -> Result<Parsed, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    chat(body.to_string().as_bytes())
}

fn generate(parsed: &Parsed) -> GenerateRequest {
    parsed.generate("s", 0, 7, 5)
}

fn chat_prompt(parsed: &Parsed) -> ChatPrompt {
    match generate(parsed).prompt {
        Some(Prompt::Chat(prompt)) => prompt,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_full_chat_request_is_understood() {
    let parsed = chat_with(json!({
        "max_tokens": 5, "max_completion_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.01,
        "repetition_penalty": 1.1, "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"7": -100, "3": 1.5},
        "seed": -1, "stop": "X", "n": 2, "stream": true, "stream_options": {"include_usage": true},
        "logprobs": true, "top_logprobs": 3, "user": "u", "unknown": {"a": [1]}, "ignore_eos": true, "store": null,
        "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto", "thinking": {"type": "disabled"},
        "response_format": {"type": "text"}
    }))
    .unwrap();
    let request = generate(&parsed);
    let sampling = request.sampling.clone().unwrap();
    assert_eq!((request.max_tokens, request.seed, request.top_logprobs), (9, u64::MAX, 3));
    assert_eq!((sampling.temperature, sampling.top_k, sampling.min_p), (Some(0.5), Some(0), Some(0.01)));
    assert_eq!(
        sampling.logit_bias.iter().map(|bias| (bias.id, bias.bias)).collect::<Vec<_>>(),
        [(3, 1.5), (7, -100.0)]
    );
    assert_eq!((parsed.choices, parsed.stream, parsed.include_usage, parsed.logprobs), (2, true, true, true));
    assert_eq!(parsed.format, Format { stop: vec!["X".to_owned()], thoughts: true, tools: true });
    let prompt = chat_prompt(&parsed);
    assert_eq!(prompt.template_kwargs_json, r#"{"thinking":false,"enable_thinking":false}"#);
    assert!(prompt.tools_json.contains("\"f\""));
    assert!(request.ignore_eos);
}

#[test]
fn what_is_not_said_is_left_to_the_deployment() {
    let parsed = chat_with(json!({})).unwrap();
    let request = generate(&parsed);
    assert_eq!(request.sampling, Some(tandem_worker_api::Sampling::default()));
    assert_eq!((request.max_tokens, request.seed), (0, 7), "the seed is the gateway's");
    assert_eq!(generate(&completion(br#"{"model": "m", "prompt": "p"}"#).unwrap()).max_tokens, 16);
}

#[test]
fn messages_are_made_plain() {
    let parsed = chat_with(json!({"messages": [
        {"role": "developer", "content": "be"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "functions.f:0", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "functions.f:0", "content": "1"}
    ]}))
    .unwrap();
    let messages: Value = serde_json::from_str(&chat_prompt(&parsed).messages_json).unwrap();
    assert_eq!(messages[0], json!({"role": "system", "content": "be"}));
    assert_eq!(messages[1]["content"], "ab");
    assert_eq!(messages[2]["tool_calls"][0]["id"], "functions.f:0", "ids stay as the model wrote them");
    assert_eq!(messages[3]["tool_call_id"], "functions.f:0");
}

#[test]
fn a_choice_of_no_tools_shows_the_template_none() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let parsed = chat_with(json!({"tools": tools, "tool_choice": "none"})).unwrap();
    assert_eq!(chat_prompt(&parsed).tools_json, "");
    assert!(!parsed.format.tools);
}

#[test]
fn every_wrong_field_is_named() {
    for (more, param, text) in [
        (json!({"model": ""}), "model", "is missing"),
        (json!({"messages": []}), "messages", "at least one"),
        (json!({"messages": "hi"}), "messages", "an array"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role", "one of system"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", "a string or an array"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]}),
            "messages[0].content[0]",
            "this model reads text only",
        ),
        (json!({"temperature": 3}), "temperature", "a number from 0 to 2"),
        (json!({"temperature": "hot"}), "temperature", "not a string"),
        (json!({"temperature": 1e300}), "temperature", "a number from 0 to 2"),
        (json!({"max_tokens": -1}), "max_tokens", "a whole number from 1"),
        (json!({"max_tokens": 0}), "max_tokens", "a whole number from 1"),
        (json!({"max_tokens": 1e30}), "max_tokens", "a whole number from 1"),
        (json!({"max_tokens": 1.5}), "max_tokens", "a whole number from 1"),
        (json!({"n": 9}), "n", "from 1 to 8"),
        (json!({"top_k": -2}), "top_k", "0 for off"),
        (json!({"seed": 1.5}), "seed", "64 bits"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop", "up to 4"),
        (json!({"stop": ""}), "stop", "1 to 1024"),
        (json!({"stop": [1]}), "stop", "up to 4"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias", "token ids"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias", "-100 to 100"),
        (json!({"logit_bias": {"1": 1, "01": 2}}), "logit_bias", "token ids"),
        (json!({"top_logprobs": 2}), "top_logprobs", "needs `logprobs`"),
        (json!({"stream_options": {}}), "stream_options", "needs `stream`"),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "include_usage",
            "`stream_options.include_usage`",
        ),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            "`json_object` is not supported yet",
        ),
        (json!({"tool_choice": "required"}), "tool_choice", "not supported yet"),
        (json!({"tools": [{"type": "function"}]}), "tools[0]", "a `name`"),
        (json!({"functions": []}), "functions", "give them as `tools`"),
        (json!({"thinking": "yes"}), "thinking", "a boolean"),
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs", "an object"),
    ] {
        let error = error(chat_with(more.clone()));
        assert_eq!(error["type"], "invalid_request_error", "{more}");
        assert!(error["param"].as_str().unwrap().ends_with(param), "{more}: {error}");
        assert!(error["message"].as_str().unwrap().contains(text), "{more}: {error}");
    }
}

#[test]
fn plain_prompts_are_one_string_or_ids() {
    let parse = |prompt: Value| completion(json!({"model": "m", "prompt": prompt}).to_string().as_bytes());
    let ids = |ids: &[u32]| Some(Prompt::Ids(TokenIds { ids: ids.to_vec() }));
    assert_eq!(generate(&parse(json!("a")).unwrap()).prompt, Some(Prompt::Text("a".to_owned())));
    assert_eq!(generate(&parse(json!(["a"])).unwrap()).prompt, Some(Prompt::Text("a".to_owned())));
    assert_eq!(generate(&parse(json!([1, 2])).unwrap()).prompt, ids(&[1, 2]));
    assert_eq!(generate(&parse(json!([[3]])).unwrap()).prompt, ids(&[3]));
    for wrong in
        [json!([]), json!([[]]), json!(["a", "b"]), json!([1, "a"]), json!([-1]), json!({}), json!(null)]
    {
        assert_eq!(error(parse(wrong.clone()))["param"], "prompt", "{wrong}");
    }
}

#[test]
fn refusals_do_not_repeat_what_the_client_wrote() {
    let secret = "s3cret".repeat(20);
    let error = error(chat_with(
        json!({"temperature": secret.clone(), "messages": [{"role": "user", "content": secret}]}),
    ));
    assert!(!error.to_string().contains("s3cret"));
}
