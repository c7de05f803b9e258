//! Quantised matrices as kernels have them: their bytes, and the bits of what is decoded.

use llamaprobe::arch::Dtype;
use llamaprobe::backend::blocks::BlockLayout;
use llamaprobe::formats::quantized::QuantizedView;
use llamaprobe::quantization::BlockFormat::{
    self, Int8Rows, Nf4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0,
};
use rayon::prelude::*;

use crate::ops::naive::Precision;
use crate::ops::operation::Role;
use crate::ops::quantized::{args, device_bytes, variants};
use crate::ops::simt::machine::{self, Build, Machine, Mode, SCHEDULES};
use crate::ops::simt::recorder::elements;
use crate::ops::simt::tape::{Arg, Tape};

/// Of every format, rows of one block and of several; of those whose rows may be of any length, such as end within a vector, a byte or
/// a block.
const SHAPES: [(BlockFormat, [usize; 2]); 20] = [
    (Int8Rows, [5, 7]),
    (Int8Rows, [3, 40]),
    (Nf4 { block: 64 }, [4, 35]),
    (Nf4 { block: 64 }, [5, 36]),
    (Nf4 { block: 64 }, [3, 40]),
    (Nf4 { block: 64 }, [2, 192]),
    (Nf4 { block: 4 }, [3, 64]),
    (Nf4 { block: 512 }, [3, 192]),
    (Q8_0, [3, 96]),
    (Q4_0, [3, 96]),
    (Q4_1, [3, 96]),
    (Q5_0, [3, 96]),
    (Q5_1, [3, 96]),
    (Q2K, [2, 512]),
    (Q3K, [2, 512]),
    (Q4K, [2, 512]),
    (Q5K, [2, 512]),
    (Q6K, [2, 512]),
    (Q8_0, [70, 32]),
    (Q4_0, [1, 32]),
];

fn views() -> impl Iterator<Item = QuantizedView> {
    SHAPES.into_iter().flat_map(|(format, shape)| variants(format, shape))
}

#[test]
fn quantized_bytes_of_a_device_are_those_made_element_by_element() {
    for view in views() {
        let layout = BlockLayout::new(&view.matrix());
        let (codes, scales, shift) = device_bytes(&view);
        let mut wanted = codes;
        wanted.resize(layout.scales_at(), 0);
        wanted.extend(scales);
        assert_eq!((layout.bytes(), layout.shift()), (wanted.len(), shift), "{layout:?}");
        for step in [1, 7, 150, wanted.len()] {
            let mut found = vec![0xa5; wanted.len()];
            found.chunks_mut(step).enumerate().for_each(|(i, part)| layout.write(&view.matrix(), i * step, part));
            assert!(found == wanted, "{layout:?}: written {step} bytes at a time");
        }
    }
}

/// Every value of every format has the bits that the library's own decoding has, rounded to the compute dtype.
#[test]
fn dequantized_values_are_those_of_the_formats() {
    if !machine::compiler() {
        return;
    }
    [Dtype::F32, Dtype::BF16, Dtype::F16].into_par_iter().for_each(|dtype| {
        let mut tape = Tape::new(dtype);
        let outputs = views().map(|view| {
            let [rows, columns] = view.shape;
            let out = tape.compute(&vec![f64::NAN; view.len()]);
            let args = [&[Arg::At(out)], &args(&mut tape, &view)[..], &[Arg::Int(rows)]].concat();
            tape.launch("dequantize", elements(rows * columns.next_multiple_of(8)), 256, 0, &args);
            (out, view)
        });
        let outputs: Vec<_> = outputs.collect();
        let machine = Machine::new(&machine::simple(), dtype, Mode::Plain, &Build::new(dtype, 16).macros());
        let run = machine.run(&tape, SCHEDULES[2]).unwrap_or_else(|said| panic!("{said}"));
        let bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect::<Vec<_>>();
        for (out, view) in outputs {
            let found = tape.read(&run, out, Role::Compute);
            let wanted = view.to_f32().into_iter().map(|x| Precision::of(dtype).c(x.into())).collect();
            assert!(bits(found) == bits(wanted), "{} {:?} {:?} in {dtype}", view.format, view.shape, view.rounding);
        }
    });
}

#[test]
fn bias_is_added_to_few_rows() {
    if !machine::compiler() {
        return;
    }
    let (dtype, rows, output) = (Dtype::BF16, 3, 5);
    let mut tape = Tape::new(dtype);
    let bias: Vec<f64> = (0..output).map(|i| i as f64 - 1.5).collect();
    let [out, x, of_bias] = [&vec![f64::NAN; rows * output], &vec![0.0; rows * 64], &bias].map(|x| tape.compute(x));
    let view = &variants(BlockFormat::NF4, [output, 64])[0];
    let sizes = [rows, output].map(Arg::Int);
    let args = [&[out, x, of_bias].map(Arg::At), &args(&mut tape, view)[..], &sizes].concat();
    tape.launch("quantized_linear_fwd", [1, 1, 1], 256, 0, &args);
    let machine = Machine::new(&machine::simple(), dtype, Mode::Plain, &Build::new(dtype, 16).macros());
    let run = machine.run(&tape, SCHEDULES[0]).unwrap_or_else(|said| panic!("{said}"));
    assert_eq!(tape.read(&run, out, Role::Compute), bias.repeat(rows));
}
