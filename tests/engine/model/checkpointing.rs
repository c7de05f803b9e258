//! Backward passes for which each layer is computed again.

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::hooks::edit::{Edit, EditOp};
use llamaprobe::model::Save;

use super::edits::{edit, sites};
use super::{Task, adapters, lora, models, parsed, prompted, random};

#[test]
fn layers_computed_again_have_the_gradients_of_those_saved_bit_for_bit() {
    for config in models() {
        for dtype in [Dtype::F32, Dtype::BF16] {
            let backend = &mut Cpu::new(dtype);
            let (model, tuning) = random(backend, &config);
            let layout = lora(&model.config, model.config.family.modules()).with_prompt(2);
            let adaptation = adapters(backend, layout, 3);
            let sequences = prompted();
            // An edit that is made twice where it should be made once moves what flows on.
            let all: Vec<Edit> =
                sites(&parsed(&config)).into_iter().map(|site| edit(site, EditOp::Scale(0.9))).collect();
            for (dropout, edits) in [(0.0, &[][..]), (0.3, &all)] {
                let mut outcome = |save| {
                    let task = Task { sequences: &sequences, dropout, edits, save };
                    let pack = model.config.pack(&task.marked(), 2);
                    task.run(backend, &model, &tuning, &adaptation, pack)
                };
                let (saved, again) = (outcome(Save::All), outcome(Save::Inputs));
                assert!(saved.d_weights.iter().any(|x| *x != 0.0));
                assert!(saved.total == again.total, "{config}: losses");
                assert!(saved.d_params == again.d_params, "{config}: adapters");
                assert!(saved.d_weights == again.d_weights, "{config}: weights");
                assert!(saved.d_embed == again.d_embed, "{config}: embeddings");
            }
        }
    }
}
