//! From a request to a job for the scheduler, or to what the client is told.

use std::num::NonZeroU32;

use tandem_engine::sampling::{BadParameter, Sampling};
use tandem_engine::scheduler::{Job, Refusal, Resume};
use tandem_worker_api::{
    GenerateRequest, PrefixDigest, Rejected, SamplingDefaults, generate_request::Prompt, rejected::Code,
};

use crate::text::{BadPrompt, ChatTokens, Text};

/// Alternatives that a frame may carry.
const MAX_TOP_LOGPROBS: u32 = 20;

/// A job, and whether its prompt ends inside a thinking block.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) job: Job,
    pub(crate) opens_thinking: bool,
}

/// Reads a request. Whether there is room for it is the scheduler's to say.
pub(crate) fn parse(
    request: &GenerateRequest,
    text: &dyn Text,
    defaults: &SamplingDefaults,
) -> Result<Parsed, Rejected> {
    if request.top_logprobs > MAX_TOP_LOGPROBS {
        let message =
            format!("top_logprobs is {}; it must be from 0 to {MAX_TOP_LOGPROBS}", request.top_logprobs);
        return Err(invalid(message, "top_logprobs"));
    }
    let asked = request.sampling.clone().unwrap_or_default();
    let sampling = Sampling::parse(&asked, defaults, text.vocab_size())
        .map_err(|BadParameter { parameter, message }| invalid(message, parameter))?;
    let resume = match &request.resume {
        None => None,
        Some(resume) => {
            let digest = PrefixDigest::try_from(resume.digest.as_slice())
                .map_err(|error| invalid(error.to_string(), "resume"))?;
            Some(Resume { ids: resume.ids.clone(), digest })
        }
    };
    let plain = |ids| ChatTokens { ids, opens_thinking: false };
    let prompt = match &request.prompt {
        Some(Prompt::Chat(chat)) => text
            .encode_chat(chat, request.asked_at)
            .map_err(|BadPrompt { message, param }| invalid(message, param))?,
        Some(Prompt::Text(prompt)) => plain(text.encode(prompt)),
        Some(Prompt::Ids(ids)) => plain(ids.ids.clone()),
        None => return Err(invalid("the request has no prompt".to_owned(), "prompt")),
    };
    Ok(Parsed {
        job: Job {
            prompt: prompt.ids,
            resume,
            sampling,
            seed: request.seed,
            choice: request.id.as_ref().map_or(0, |id| id.choice),
            max_tokens: NonZeroU32::new(request.max_tokens),
            ignore_end: request.ignore_eos,
            top_logprobs: request.top_logprobs as usize,
        },
        opens_thinking: prompt.opens_thinking,
    })
}

/// A refusal of the client's request.
pub(crate) fn invalid(message: String, param: &str) -> Rejected {
    Rejected { code: Code::InvalidRequest.into(), message, param: param.to_owned() }
}

/// A refusal that is not about the request's fields.
pub(crate) fn rejected(code: Code, message: impl Into<String>) -> Rejected {
    Rejected { code: code.into(), message: message.into(), param: String::new() }
}

/// What the client is told of the scheduler's refusal.
pub(crate) fn refused(refusal: &Refusal) -> Rejected {
    let message = refusal.to_string();
    match refusal {
        Refusal::EmptyPrompt | Refusal::UnknownToken { .. } => invalid(message, "prompt"),
        Refusal::ContextLength { .. } | Refusal::PromptLength { .. } => {
            Rejected { code: Code::ContextLengthExceeded.into(), message, param: "messages".to_owned() }
        }
        Refusal::Overloaded { .. } => rejected(Code::Overloaded, message),
        Refusal::Draining => rejected(Code::Draining, message),
        Refusal::Diverged => rejected(Code::Diverged, message),
    }
}
