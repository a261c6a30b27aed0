use super::*;
use proptest::prelude::*;

fn read_value(bytes: &[u8]) -> Result<Value, Problem> {
    read(bytes).map(|(pickle, _)| pickle.value(pickle.root).clone())
}

#[track_caller]
fn check_refused(bytes: &[u8], expected: &str, position: usize) {
    let problem = read(bytes).expect_err("refused");
    assert!(problem.what.contains(expected), "{:?} lacks {expected:?}", problem.what);
    assert_eq!(problem.position, position);
}

#[test]
fn code_is_refused_by_name_and_position() {
    check_refused(b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "`os.system`", 2);
    check_refused(b"\x80\x02cbuiltins\neval\n.", "`builtins.eval`", 2);
    check_refused(b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "`posix.system`", 17);
    check_refused(b"\x80\x02ctorch\nload\n.", "`torch.load`", 2);
    check_refused(b"\x80\x02c__main__\nResNet\n)\x81.", "`__main__.ResNet`", 2);
    check_refused(b"\x80\x02c__main__\nRes\x1b[2J\n.", "`__main__.Res?[2J`", 2);
}

#[test]
fn unknown_opcodes_are_refused() {
    // INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, PERSID, DUP, NEXT_BUFFER, STRING, and one that does not exist.
    for opcode in [b'i', b'o', 0x81, 0x92, 0x82, b'P', b'2', 0x97, b'S', 0xff] {
        check_refused(&[0x80, 2, b'N', opcode, b'.'], &format!("opcode {opcode:#04x} is not allowed"), 3);
    }
}

#[test]
fn only_listed_names_can_be_called_and_only_with_their_arguments() {
    check_refused(b"\x80\x02K\x01)R.", "cannot be called", 5);
    check_refused(b"\x80\x02ctorch\nFloatStorage\nK\x05\x85R.", "arguments that it does not take", 25);
    check_refused(b"\x80\x02ccollections\nOrderedDict\nK\x05R.", "tuple of arguments", 29);
    check_refused(b"\x80\x02}K\x01b.", "a state for something that has none", 5);
    check_refused(b"\x80\x02K\x01Q.", "no tuple", 4);
}

#[test]
fn cut_or_unbalanced_pickles_are_refused() {
    check_refused(b"", "end too early", 0);
    check_refused(b"\x80\x02X\xff\xff\xff\x7fabc", "end too early", 2);
    check_refused(b"\x80\x02a.", "a value is missing", 2);
    check_refused(b"\x80\x02u.", "a mark is missing", 2);
    check_refused(b"\x80\x02h\x05.", "empty memo slot", 2);
    check_refused(b"\x80\x02Nr\xff\xff\xff\x7f.", "memo slot 2147483647 is out of range", 3);
    check_refused(b"\x80\x02\x8a\x09\x00\0\0\0\0\0\0\0\x01.", "more than 64 bits", 2);
}

#[test]
fn too_many_values_are_refused() {
    let bytes = vec![b'N'; MAX_VALUES + 1];
    check_refused(&bytes, "more than 1048576 values", MAX_VALUES);
}

#[test]
fn a_list_inside_itself_is_only_data() {
    // x = []; x.append(x)
    let (pickle, len) = read(b"\x80\x02]q\x00h\x00a.").expect("reads");
    assert_eq!((pickle.value(pickle.root), len), (&Value::List(vec![pickle.root]), 9));
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    let mut bytes = vec![b']'; 200_000];
    bytes.extend(vec![b'a'; 199_999]);
    bytes.push(b'.');
    assert!(read(&bytes).is_ok());
}

#[test]
fn numbers_and_texts_of_every_spelling_are_read() {
    assert_eq!(read_value(b"J\xff\xff\xff\xff."), Ok(Value::Int(-1)));
    assert_eq!(read_value(b"M\x01\x02."), Ok(Value::Int(513)));
    assert_eq!(read_value(b"\x8a\x00."), Ok(Value::Int(0)));
    assert_eq!(read_value(b"\x8a\x02\x00\x80."), Ok(Value::Int(-32768)));
    assert_eq!(read_value(b"G\x3f\xf8\0\0\0\0\0\0."), Ok(Value::Float(1.5)));
    assert_eq!(read_value(b"U\x02ab."), Ok(Value::Text("ab".into())));
    assert_eq!(read_value(b"U\x01\xff."), Ok(Value::Bytes([255].into())));
    assert_eq!(read_value(b"B\x01\0\0\0a."), Ok(Value::Bytes([97].into())));
}

/// What `torch.save` makes of a dictionary with a float, a numpy scalar, a view and a shape.
fn honest() -> Vec<u8> {
    let mut bytes = b"\x80\x02}q\x00(X\x01\0\0\0aG\x3f\xf8\0\0\0\0\0\0X\x01\0\0\0b".to_vec();
    bytes.extend(b"cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\0\0\0f8\x89\x88\x87R(K\x03X\x01\0\0\0<NNNJ");
    bytes.extend(b"\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbc_codecs\nencode\nX\x09\0\0\0\0\0\0\0\0\0\xc3\xb8?X\x06\0\0\0latin1\x86R\x86R");
    bytes.extend(
        b"X\x01\0\0\0cctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x007",
    );
    bytes.extend(b"X\x03\0\0\0cpuK\x06tQK\x02K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRu.");
    bytes
}

#[test]
fn what_torch_writes_is_read() {
    let (pickle, _) = read(&honest()).expect("reads");
    let value = |key: &str| pickle.value(pickle.get(pickle.root, key).expect("there"));
    assert_eq!((value("a"), value("b")), (&Value::Float(1.5), &Value::Float(1.5)));
    let Value::Tensor(tensor) = value("c") else { panic!("no tensor") };
    assert_eq!((tensor.offset, &tensor.shape[..], &tensor.stride[..]), (2, &[2][..], &[1][..]));
    let Value::Storage(storage) = pickle.value(tensor.storage) else { panic!("no storage") };
    assert_eq!((&*storage.key, storage.n_bytes()), ("7", Some(24)));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
    }

    #[test]
    fn an_honest_pickle_with_flipped_bits_is_read_or_refused(at in 0..honest().len(), bit in 0..8) {
        let mut bytes = honest();
        bytes[at] ^= 1u8 << bit;
        let _ = read(&bytes);
    }

    #[test]
    fn a_cut_pickle_is_refused(len in 0..honest().len() - 1) {
        prop_assert!(read(&honest()[..len]).is_err());
    }
}
