//! Prints the logits of a model of `Deepseek2::tiny`'s shape, all f32, one line per token:
//! `logits tiny.gguf 17 4 255`.

use tandem_reference::Reference;
use tandem_reference::deepseek2::Deepseek2;
use tandem_reference::file::read_f32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name a file and token ids")?;
    let tokens = arguments.map(|id| id.parse()).collect::<Result<Vec<u32>, _>>()?;
    let weights = read_f32(&std::fs::read(path)?);
    for row in Deepseek2::tiny().logits(&weights, &tokens, 0) {
        let row: Vec<String> = row.iter().map(|logit| format!("{logit:.17e}")).collect();
        println!("{}", row.join(" "));
    }
    Ok(())
}
