//! The models of this crate, for other engines to be held against:
//! `logits write llama model.gguf` writes a small random one, all f32, of an architecture;
//! `logits of llama model.gguf 17 4 255` prints the logits after each of the tokens, a line each.

use tandem_reference::Reference;
use tandem_reference::deepseek2::Deepseek2;
use tandem_reference::dense::Dense;
use tandem_reference::file::{random_file, read_f32};

const USAGE: &str = "logits write|of deepseek2|llama|qwen2 FILE [TOKEN…]";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [action, architecture, path, tokens @ ..] = arguments.as_slice() else { return Err(USAGE.into()) };
    let shape: Box<dyn Reference> = match architecture.as_str() {
        "deepseek2" => Box::new(Deepseek2::tiny()),
        "llama" => Box::new(Dense::llama()),
        "qwen2" => Box::new(Dense::qwen2()),
        _ => return Err(USAGE.into()),
    };
    match action.as_str() {
        "write" => std::fs::write(path, random_file(shape.as_ref(), 0))?,
        "of" => {
            let tokens = tokens.iter().map(|id| id.parse()).collect::<Result<Vec<u32>, _>>()?;
            for row in shape.logits(&read_f32(&std::fs::read(path)?), &tokens, 0) {
                let row: Vec<String> = row.iter().map(|logit| format!("{logit:.17e}")).collect();
                println!("{}", row.join(" "));
            }
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}
