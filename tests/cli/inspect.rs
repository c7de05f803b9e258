//! `inspect`.

use std::fs;

use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::{line, put, tensor, workplace};
use crate::support::tiny_model::TinyModel;

#[test]
fn inspect_shows_shapes_and_parameters_of_the_file() {
    let dir = workplace();
    let json = line(dir.path(), "inspect --model {}/model --rows 100 --json").json();
    let tiny = TinyModel::default();
    let elements: usize = tiny.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(json["model"]["parameters"], elements);
    assert_eq!(json["capture"]["weights__mapped"], 4 * elements);
    let total = |plan: &Value| plan["total"].as_u64().expect("a sum");
    assert!(total(&json["train_lora"]) > total(&json["capture"]));
    // Rank 8 on queries and values.
    let outputs = (tiny.heads + tiny.kv_heads) * tiny.head_dim;
    let trainable = tiny.layers * 8 * (2 * tiny.width + outputs);
    assert_eq!(json["trainable_parameters"], trainable);
    assert_eq!(json["trainable_percent"], 100.0 * trainable as f64 / (elements + trainable) as f64);
    let text = line(dir.path(), "inspect --model {}/model").ok().out;
    assert!(text.contains("layers") && text.contains("activations"), "{text}");
}

#[test]
fn inspect_predicts_a_step_on_a_gpu_that_is_not_here() {
    let dir = workplace();
    let inspect = |more: &str| line(dir.path(), &format!("inspect --model {{}}/model --dtype bf16 --rows 20 {more}"));
    let adapted = "--r 4 --target-modules q_proj,v_proj,down_proj";
    let of = |gpu: &str| inspect(&format!("--device-model {gpu} {adapted} --json")).json()["predicted"].clone();
    let found = of("h200");
    let number = |value: &Value| value.as_f64().expect("a number");
    assert_eq!(
        (&found["measured"], &found["device_model"], &found["fits"]),
        (&json!(false), &json!("h200"), &json!(true))
    );
    let ops = found["ops"].as_array().expect("operations");
    for key in ["launches", "bytes", "flops", "ms"] {
        let sum: f64 = ops.iter().map(|op| number(&op[key])).sum();
        assert!((sum - number(&found["step"][key])).abs() <= 1e-9 * sum, "{key}: {found}");
    }
    assert!((number(&found["tokens_per_second"]) - 20e3 / number(&found["step"]["ms"])).abs() < 1e-3);
    assert!(ops.iter().any(|op| op["op"] == "lora_bwd" && op["launches"] == 2 * (2 + 2)), "{found}");
    // So small a model is launches alone, which take as long on every device.
    assert!(number(&of("a100")["step"]["ms"]) >= number(&found["step"]["ms"]));
    let text = inspect(&format!("--device-model h100 {adapted}")).ok().out;
    let wanted =
        ["predicted, not measured", "on h100, 20 tokens, rank 4 on q_proj and v_proj", "by these constants", "fits in"];
    wanted.iter().for_each(|wanted| assert!(text.contains(wanted), "{wanted}: {text}"));
    assert!(inspect(adapted).ok().out.contains("train-lora, 20 rows, rank 4 on q_proj"));
    let unknown = inspect("--device-model h300");
    assert_eq!(unknown.code, Some(2));
    assert!(["h300", "a100", "h100", "h200"].iter().all(|name| unknown.err.contains(name)), "{}", unknown.err);
    let quantized =
        inspect(&format!("--device-model h200 {adapted} --load-in int8 --json")).json()["predicted"].clone();
    let decodings = |found: &Value| {
        let ops = found["ops"].as_array().expect("operations").iter();
        let of =
            ops.filter(|op| op["op"].as_str().is_some_and(|op| op.starts_with("linear_")) && op["runs"] == "kernel");
        of.map(|op| number(&op["launches"])).sum::<f64>()
    };
    // All projections of two layers, and on the way back all but those that read the lowest layer's input.
    assert_eq!((decodings(&found), decodings(&quantized)), (0.0, f64::from(2 * 7 + 2 * 7 - 3)));
    let TinyModel { width, heads, kv_heads, head_dim, ffn, layers, .. } = TinyModel::default();
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let shapes = [(q, width), (kv, width), (kv, width), (width, q), (ffn, width), (ffn, width), (width, ffn)];
    let bytes = |(rows, columns): (usize, usize)| (rows * columns).next_multiple_of(256) + 4 * rows;
    let memory = |line: &str| quantized["memory"][line].as_u64().expect("a line") as usize;
    assert_eq!(memory("weights__quantised"), layers * shapes.map(bytes).iter().sum::<usize>());
    // Gate and up-projection are decoded side by side.
    assert_eq!(memory("weights__decoded"), 2 * (2 * ffn * width).next_multiple_of(256));
    assert!(inspect("--device-model h200 --r 0").refused().contains("--r"));
}

#[test]
fn inspect_says_what_peft_does_silently() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", "{\"prompt\": \"a\", \"completion\": \" b\"}\n");
    line(d, "train-lora --model {}/model --train {}/train.jsonl --out {}/adapter --max-steps 1").ok();
    let inspect = || line(d, "inspect --model {}/model --adapter {}/adapter --json").json()["adapter"].clone();
    let found = |report: &Value, text: &str| {
        report["peft"].as_array().expect("findings").iter().any(|f| f.as_str().is_some_and(|f| f.contains(text)))
    };
    let good = inspect();
    assert_eq!((good["readable"].as_bool(), good["tensors"].as_u64()), (Some(true), Some(8)));
    assert_eq!(good["peft"], json!([]));

    let weights = d.join("adapter/adapter_model.safetensors");
    let intact = fs::read(&weights).expect("weights");
    let file = safetensors::SafeTensors::deserialize(&intact).expect("safetensors");
    let extra = vec![0u8; 4 * 8 * 24];
    let view = TensorView::new(safetensors::Dtype::F32, vec![8, 24], &extra).expect("a tensor");
    let name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight";
    let more = file.tensors().into_iter().chain([(name.to_owned(), view)]);
    fs::write(&weights, safetensors::serialize(more, None).expect("bytes")).expect("write");
    let report = inspect();
    assert!(found(&report, "without a warning") && found(&report, "up_proj"), "{report}");
    assert_eq!(report["readable"], false);

    fs::write(&weights, &intact).expect("write");
    let config = d.join("adapter/adapter_config.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&config).expect("config")).expect("JSON");
    value.as_object_mut().expect("an object").remove("lora_alpha");
    fs::write(&config, value.to_string()).expect("write");
    let report = inspect();
    assert!(found(&report, "silently takes 8 for lora_alpha"), "{report}");
    assert_eq!(report["readable"], true, "{report}");
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6]}\n");
    let said = line(d, "capture --model {}/model --adapter {}/adapter --input {}/ids.jsonl --out {}/states").ok().err;
    assert_eq!(said.matches("lora_alpha: absent, and 8 as in PEFT").count(), 1, "{said}");
}

/// Adds zeros of some names and shapes to an adapter's tensors.
fn with_tensors(intact: &[u8], more: &[(&str, &[usize])]) -> Vec<u8> {
    let zeros = vec![0u8; 4 * 272 * 40];
    let file = safetensors::SafeTensors::deserialize(intact).expect("safetensors");
    let views = more.iter().map(|(name, shape)| {
        let bytes = 4 * shape.iter().product::<usize>();
        let view = TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &zeros[..bytes]).expect("a tensor");
        (format!("base_model.model.{name}"), view)
    });
    safetensors::serialize(file.tensors().into_iter().chain(views), None).expect("bytes")
}

/// What PEFT 0.21.2 does with these tensors: each was changed in turn, and moved the logits or did not; errors and
/// warnings are its own.
#[test]
fn inspect_calls_ignored_what_peft_does_not_load() {
    const Q: &str = "model.layers.0.self_attn.q_proj";
    let q = |end: &str| format!("{Q}.{end}");
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", "{\"prompt\": \"a\", \"completion\": \" b\"}\n");
    line(d, "train-lora --model {}/model --train {}/train.jsonl --out {}/adapter --r 2 --max-steps 1").ok();
    let (weights, config) = (d.join("adapter/adapter_model.safetensors"), d.join("adapter/adapter_config.json"));
    let (intact, plain) = (fs::read(&weights).expect("weights"), fs::read(&config).expect("config"));
    let described = |patch: Value, more: &[(&str, &[usize])]| {
        let mut value: Value = serde_json::from_slice(&plain).expect("JSON");
        value.as_object_mut().expect("an object").extend(patch.as_object().expect("an object").clone());
        fs::write(&config, value.to_string()).expect("write");
        fs::write(&weights, with_tensors(&intact, more)).expect("write");
        line(d, "inspect --model {}/model --adapter {}/adapter --json").json()["adapter"].clone()
    };
    // Loaded into the adapter, or over a weight of the model.
    let (table, square) = ([272, 24], [32, 24]);
    for (patch, name, shape) in [
        (json!({}), "lm_head.weight".to_owned(), &table[..]),
        (json!({}), "model.embed_tokens.weight".to_owned(), &table),
        (json!({}), "model.norm.weight".to_owned(), &[24]),
        (json!({}), "model.layers.0.mlp.up_proj.weight".to_owned(), &[40, 24]),
        (json!({}), q("base_layer.weight"), &square),
        (json!({}), "model.layers.1.self_attn.o_proj.weight".to_owned(), &[24, 32]),
        (json!({"modules_to_save": ["lm_head"]}), "lm_head.weight".to_owned(), &table),
        (json!({"use_dora": true}), q("lora_magnitude_vector"), &[32]),
        (json!({"lora_bias": true}), q("lora_B.bias"), &[32]),
        (json!({"kasa_config": {}}), q("lora_diag"), &[2]),
        (
            json!({"layer_replication": [[0, 2], [1, 2]]}),
            "model.layers.2.self_attn.q_proj.lora_A.weight".to_owned(),
            &[2, 24],
        ),
        (
            json!({"target_modules": ["q_proj", "v_proj", "embed_tokens"]}),
            "model.embed_tokens.lora_embedding_A".to_owned(),
            &[2, 272],
        ),
        (json!({"target_modules": ["q_proj", "v_proj", "lm_head"]}), "lm_head.lora_B.weight".to_owned(), &[272, 2]),
        (json!({"target_modules": ["q_proj", "v_proj", "lm_head"]}), "lm_head.base_layer.weight".to_owned(), &table),
        (
            json!({"trainable_token_indices": [3, 7]}),
            "model.embed_tokens.token_adapter.trainable_tokens_delta".to_owned(),
            &[2, 24],
        ),
        (
            json!({"target_parameters": ["mlp.up_proj.weight"]}),
            "model.layers.0.mlp.up_proj.lora_A.weight".to_owned(),
            &[2, 24],
        ),
    ] {
        let ours = ["modules_to_save", "trainable_token_indices"].iter().any(|key| patch.get(key).is_some());
        let report = described(patch, &[(&name, shape)]);
        assert_eq!(report["ignored"], json!([]), "{name}: {report}");
        assert_eq!(report["loaded"].as_array().map(Vec::len), Some(9), "{name}: {report}");
        assert_eq!(report["readable"], ours, "{name}: {report}");
    }
    // Loaded by nothing.
    for (name, shape) in [
        (q("weight"), &square[..]),
        (q("bias"), &[32]),
        (q("lora_B.bias"), &[32]),
        (q("lora_magnitude_vector"), &[32]),
        ("model.embed_tokens.lora_embedding_A".to_owned(), &[2, 272]),
        ("model.layers.0.self_attn.k_proj.bias".to_owned(), &[16]),
        ("model.layers.2.self_attn.q_proj.lora_A.weight".to_owned(), &[2, 24]),
        ("score.weight".to_owned(), &[2, 24]),
    ] {
        let report = described(json!({}), &[(&name, shape)]);
        assert_eq!(report["ignored"], json!([format!("base_model.model.{name}")]), "{report}");
    }
    // Where it stops, and where it warns.
    let head: (&str, &[usize]) = ("lm_head.weight", &[273, 24]);
    let nothing: &[(&str, &[usize])] = &[];
    for (patch, more, said) in [
        (json!({}), &[head][..], "stops: size mismatch"),
        (json!({"modules_to_save": ["lm_head"]}), nothing, "stops: KeyError"),
        (json!({"target_modules": ["zz"]}), nothing, "stops: NoMatchingPeftModuleError"),
        (json!({"target_modules": ["q_proj", "norm"]}), nothing, "stops: ValueError"),
        (json!({"bias": null}), nothing, "stops: AttributeError"),
        (json!({"init_lora_weights": "nonsense"}), nothing, "stops: ValueError"),
        (json!({"use_dora": true, "kasa_config": {}}), nothing, "stops: ValueError"),
        (json!({"use_dora": true}), nothing, "warns of 4 tensors"),
        (json!({"target_modules": "all-linear"}), nothing, "warns of 20 tensors"),
        (json!({"brand_new": 1}), nothing, "drops: brand_new"),
        (json!({"init_lora_weights": "pissa"}), nothing, "changes the base weights"),
        (json!({"rank_pattern": {"q_proj": 4}}), nothing, "stops: size mismatch"),
        (json!({"peft_type": "IA3"}), nothing, "warns of 4 tensors"),
        (json!({"peft_type": "LOHA"}), nothing, "loads an adapter of type LOHA, which is not described here"),
        (json!({"peft_type": "NEW"}), nothing, "stops: KeyError"),
    ] {
        let report = described(patch.clone(), more);
        let lines: Vec<&str> = report["peft"].as_array().expect("lines").iter().filter_map(Value::as_str).collect();
        assert!(lines.iter().any(|line| line.contains(said)), "{patch}: {lines:?}");
    }
}

/// An adapter in the directory of `--model` is applied as transformers 5.24 applies it: beside a model to that model, and
/// alone to the base model that it names.
#[test]
fn adapter_of_the_model_directory_is_applied() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", "{\"prompt\": \"a\", \"completion\": \" b\"}\n");
    let train = "train-lora --model {}/model --train {}/train.jsonl --max-steps 2 --learning-rate 0.1";
    line(d, &format!("{train} --out {{}}/adapter --lora-dropout 0.25")).ok();
    let config = d.join("adapter/adapter_config.json");
    let text = fs::read_to_string(&config).expect("config");
    let states = |name: &str, args: &str| {
        let base = format!("capture --input {{}}/texts.jsonl --sites resid_post --tokens all --out {{}}/{name}");
        let ran = line(d, &format!("{base} {args}"));
        assert_eq!(ran.code, Some(0), "{args}: {}", ran.err);
        let file = d.join(name).join("activations.safetensors");
        (0..2).map(|layer| tensor(&file, &format!("blocks.{layer}.hook_resid_post"))).collect::<Vec<_>>()
    };
    let right = states("right", "--model {}/model --adapter {}/adapter");
    assert!(right != states("bare", "--model {}/model"));
    assert!(right == states("named", "--model {}/adapter"), "the base model is named by the adapter");
    // Beside a model it is that model's, whatever its configuration names.
    fs::write(&config, text.replace(&d.join("model").display().to_string(), "someone/else")).expect("write");
    let lost = line(d, "capture --model {}/adapter --input {}/texts.jsonl --out {}/lost").refused();
    assert!(lost.contains("base_model_name_or_path") && lost.contains("--adapter"), "{lost}");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(d.join("model").join(name), d.join("adapter").join(name)).expect("copies");
    }
    assert!(right == states("beside", "--model {}/adapter"), "the model beside it");
    let twice = line(d, "capture --model {}/adapter --adapter {}/adapter --input {}/texts.jsonl --out {}/t").refused();
    assert!(twice.contains("--adapter") && twice.contains("adapter_config.json"), "{twice}");
    let report = line(d, "inspect --model {}/adapter --json").json();
    assert_eq!(report["adapter"]["readable"], true, "{report}");
    // A training begins with a model; its dropout is the adapter's where no flag names one.
    let refused = line(d, "train-lora --model {}/adapter --train {}/train.jsonl --out {}/no").refused();
    assert!(refused.contains("--init-adapter"), "{refused}");
    line(d, &format!("{train} --init-adapter {{}}/adapter --out {{}}/more")).ok();
    let more: Value =
        serde_json::from_slice(&fs::read(d.join("more/adapter_config.json")).expect("a file")).expect("JSON");
    assert_eq!(more["lora_dropout"], 0.25);
}
