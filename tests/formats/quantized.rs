//! Block formats against the libraries that define them: `golden/quantized.py`.

use std::path::Path;

use llamaprobe::arch::Dtype;
use llamaprobe::formats::quantized::{Floats, QuantizedView, RowOrderView, ScalesView};
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::quantization::{BlockFormat, encode_int8, encode_nf4, encode_q8_0};

/// Every which value the script kept of long matrices.
const STRIDE: usize = 31;

struct Golden(Checkpoint);

impl Golden {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quantized.safetensors");
        Self(Checkpoint::open(&path).expect("the golden file"))
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.0.get(name).expect("a tensor").as_slice::<f32>().expect("F32").to_vec()
    }

    fn view(&self, name: &str, format: BlockFormat, shape: [usize; 2], scales: ScalesView) -> QuantizedView {
        let codes = self.0.get(&format!("{name}.codes")).expect("codes").data;
        let order = RowOrderView::From(0);
        QuantizedView { name: name.into(), format, shape, stored_rows: shape[0], codes, scales, order, rounding: None }
    }

    fn absmax(&self, name: &str) -> ScalesView {
        ScalesView::Absmax(Floats::new(&self.0.get(&format!("{name}.absmax")).expect("absmax").data))
    }

    fn nested(&self, name: &str) -> ScalesView {
        let part = |part: &str| format!("{name}.{part}");
        ScalesView::Nested {
            codes: self.0.get(&part("absmax")).expect("codes").data,
            map: std::sync::Arc::new(self.floats(&part("nested_quant_map")).try_into().expect("256")),
            absmax: Floats::new(&self.0.get(&part("nested_absmax")).expect("absmax").data),
            offset: self.floats(&part("nested_offset"))[0],
            block: 256,
        }
    }

    /// Every format of the file.
    fn all(&self) -> Vec<QuantizedView> {
        let nf4 = |block| BlockFormat::Nf4 { block };
        let factor = |name: &str| ScalesView::Factor(Floats::from(self.floats(&format!("{name}.scales"))));
        let rounded = |view: QuantizedView| QuantizedView { rounding: Some(Dtype::BF16), ..view };
        let ggml =
            |format: BlockFormat| self.view(format.name(), format, [2, 2 * format.block_values()], ScalesView::Inline);
        let mut all = vec![
            self.view("nf4", BlockFormat::NF4, [3, 74], self.absmax("nf4")),
            self.view("nf4_odd", BlockFormat::NF4, [5, 37], self.absmax("nf4_odd")),
            rounded(self.view("nf4_bf16", nf4(32), [2, 64], self.absmax("nf4_bf16"))),
            self.view("nf4_nested", nf4(32), [132, 63], self.nested("nf4_nested")),
            self.view("int8", BlockFormat::Int8Rows, [5, 7], self.absmax("int8")),
            self.view("int8_ao", BlockFormat::Int8Rows, [5, 7], factor("int8_ao")),
            rounded(self.view("int8_ao_bf16", BlockFormat::Int8Rows, [5, 7], factor("int8_ao_bf16"))),
        ];
        use BlockFormat::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        all.extend([Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2K, Q3K, Q4K, Q5K, Q6K].map(ggml));
        all
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn block_formats_give_the_bits_of_their_libraries() {
    let golden = Golden::open();
    for view in golden.all() {
        view.check().unwrap_or_else(|error| panic!("{}: {error}", view.name));
        let (values, expected) = (view.to_f32(), golden.floats(&format!("{}.values", view.name)));
        let stride = if values.len() > 1024 && view.format.flattened() { STRIDE } else { 1 };
        let values: Vec<f32> = values.into_iter().step_by(stride).collect();
        assert_eq!(bits(&values), bits(&expected), "{}", view.name);
        assert!(values.iter().any(|x| *x != 0.0) && values.iter().all(|x| x.is_finite()), "{}", view.name);
    }
}

#[test]
fn block_formats_are_made_of_numbers_as_their_libraries_make_them() {
    let golden = Golden::open();
    let bytes = |name: &str| golden.0.get(name).expect("a tensor").data.to_vec();
    for (name, block) in [("nf4", 64), ("nf4_odd", 64), ("nf4_bf16", 32)] {
        let values = golden.floats(&format!("{name}.weight"));
        let (mut codes, mut absmax) = (vec![9; values.len().div_ceil(2)], vec![9.0; values.len().div_ceil(block)]);
        encode_nf4(&values, block, &mut codes, &mut absmax);
        assert_eq!(bits(&absmax), bits(&golden.floats(&format!("{name}.absmax"))), "{name}");
        assert_eq!(codes, bytes(&format!("{name}.codes")), "{name}");
    }
    let (values, mut codes) = (golden.floats("int8.weight"), vec![9; 35]);
    let absmax: Vec<f32> = codes.chunks_mut(7).zip(values.chunks(7)).map(|(to, row)| encode_int8(row, to)).collect();
    assert_eq!((bits(&absmax), codes), (bits(&golden.floats("int8.absmax")), bytes("int8.codes")));
    // bitsandbytes 0.50.2 on a CPU, with PyTorch 2.15: 127 / absmax is a product with a reciprocal, and this tie falls below 63.5.
    let mut codes = [9; 2];
    assert_eq!((encode_int8(&[0.816_406_25, 0.408_203_13], &mut codes), codes), (0.816_406_25, [127, 63]));
    let (values, mut codes) = (golden.floats("encoded.weight"), Vec::new());
    for block in values.chunks(32) {
        let mut out = [9; 34];
        encode_q8_0(block.try_into().expect("a block"), &mut out);
        codes.extend(out);
    }
    assert_eq!(codes, bytes("encoded.codes"));
}

#[test]
fn block_formats_decode_parts_of_rows() {
    for view in Golden::open().all() {
        let (matrix, [rows, columns], all) = (view.matrix(), view.shape, view.to_f32());
        for row in [0, rows - 1] {
            for (from, to) in [(0, 0), (1, 2), (3, columns - 2), (columns / 2, columns)] {
                let mut out = vec![f32::NAN; to - from];
                matrix.dequantize_row(row, from..to, &mut out);
                assert_eq!(bits(&out), bits(&all[row * columns + from..row * columns + to]), "{} {row}", view.name);
            }
        }
    }
}

#[test]
fn block_formats_give_rows_in_another_order() {
    for view in Golden::open().all() {
        let ([rows, columns], all) = (view.shape, view.to_f32());
        let part = QuantizedView { shape: [rows - 1, columns], order: RowOrderView::From(1), ..view.clone() };
        assert_eq!(bits(&part.to_f32()), bits(&all[columns..]), "{}", view.name);
        let list = vec![rows as u32 - 1, 0, 0];
        let order = RowOrderView::Listed(list.into());
        let listed = QuantizedView { shape: [3, columns], order, ..view.clone() };
        listed.check().expect("rows of the stored matrix");
        let expected = [&all[(rows - 1) * columns..], &all[..columns], &all[..columns]].concat();
        assert_eq!(bits(&listed.to_f32()), bits(&expected), "{}", view.name);
    }
}

#[test]
fn block_formats_refuse_parts_of_another_length() {
    let golden = Golden::open();
    let wrong = |view: &QuantizedView, words: &str| {
        let error = view.check().expect_err(words).to_string();
        assert!(error.contains(words), "{}: {error}", view.name);
    };
    for view in golden.all() {
        let short = view.codes.slice(0..view.codes.len() - 1);
        wrong(&QuantizedView { codes: short, ..view.clone() }, "codes: expected");
        wrong(&QuantizedView { stored_rows: usize::MAX / 2, ..view.clone() }, "expected");
        wrong(&QuantizedView { order: RowOrderView::From(1), ..view.clone() }, "rows: expected at most");
        let list = vec![view.stored_rows as u32; view.shape[0]];
        wrong(&QuantizedView { order: RowOrderView::Listed(list.into()), ..view.clone() }, "row: expected below");
        let scales = ScalesView::Absmax(vec![1.0; 9999].into());
        wrong(&QuantizedView { scales, ..view.clone() }, "expected");
    }
    let view = golden.view("Q4_K", BlockFormat::Q4K, [2, 500], ScalesView::Inline);
    wrong(&view, "columns: expected a multiple of 256, found 500");
    let view = golden.view("nf4", BlockFormat::Nf4 { block: 48 }, [3, 74], golden.absmax("nf4"));
    wrong(&view, "blocksize: expected a power of two, found 48");
    wrong(&golden.view("int8", BlockFormat::Int8Rows, [5, 7], ScalesView::Inline), "scales: expected");
}
