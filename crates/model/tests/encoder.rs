//! all-MiniLM-L6-v2, as its package has it, beside a reference in numpy and float64
//! (bench/fidelity/encoder.py).

use serde::Deserialize;
use tessera_model::encoder::Encoder;
use tessera_model::store::testing::find_test_model;

#[derive(Deserialize)]
struct Golden {
    text: String,
    tokens: Vec<u32>,
    embedding: Vec<f32>,
}

fn likeness(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn embeddings_are_those_of_the_reference() {
    let Some(path) = find_test_model("all-minilm") else { return };
    let encoder = Encoder::open("all-minilm", &path, 2).unwrap();
    assert_eq!((encoder.width(), encoder.longest()), (384, 256));
    let goldens: Vec<Golden> =
        serde_json::from_str(include_str!("goldens/all-minilm.json")).unwrap();
    let mut texts = Vec::new();
    for golden in &goldens {
        let tokens = encoder.tokens(&golden.text).unwrap();
        assert_eq!(tokens, golden.tokens, "{}", golden.text);
        texts.push(tokens);
    }
    let made = encoder.embed(&texts).unwrap();
    for (golden, made) in goldens.iter().zip(&made) {
        for (wanted, got) in golden.embedding.iter().zip(made) {
            assert!((wanted - got).abs() < 2e-6, "{}: {got}, not {wanted}", golden.text);
        }
    }
    // What means the same is alike, what does not is not.
    let (close, far) = (likeness(&made[0], &made[1]), likeness(&made[0], &made[2]));
    assert!(close > 0.6 && far < 0.2, "{close} {far}");
    // Longer than the encoder reads: refused, not cut.
    let error = encoder.tokens(&"word ".repeat(300)).unwrap_err().to_string();
    assert!(error.contains("302 tokens") && error.contains("256"), "{error}");
}
