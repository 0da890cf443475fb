//! Filters of system calls, compiled by seccompiler from lists: what the filters of jails and of the monitor share.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// Numbers of calls that newer kernels than those this program knows may have. They return ENOSYS.
pub(crate) const UNKNOWN: std::ops::Range<i64> = 463..512;

/// The calls that a filter is about, each with the arguments that it matches; one without rules matches any arguments.
pub(crate) type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A test of one argument of a call, by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    /// An `int` has this value. The kernel ignores the upper half of its register.
    Int(u8, u32),
    /// A whole register has this value.
    Register(u8, u64),
    /// The bits of the mask have these values.
    Bits {
        /// The argument's index.
        index: u8,
        /// The bits that count.
        mask: u64,
        /// Their values.
        value: u64,
    },
}

impl Argument {
    fn condition(self) -> Result<SeccompCondition, BackendError> {
        use SeccompCmpArgLen::{Dword, Qword};
        let (index, length, operator, value) = match self {
            Argument::Int(index, value) => (index, Dword, SeccompCmpOp::Eq, value.into()),
            Argument::Register(index, value) => (index, Qword, SeccompCmpOp::Eq, value),
            Argument::Bits { index, mask, value } => {
                (index, Qword, SeccompCmpOp::MaskedEq(mask), value)
            }
        };
        SeccompCondition::new(index, length, operator, value)
    }
}

/// Returns a rule that matches where all of these arguments pass their tests.
///
/// # Errors
///
/// Seccompiler's error, where `arguments` is empty, or a call has no argument of an index in it.
pub(crate) fn rule(arguments: &[Argument]) -> Result<SeccompRule, BackendError> {
    let conditions = arguments.iter().map(|argument| argument.condition());
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// Returns rules that match these calls with any arguments.
pub(crate) fn listed(calls: impl IntoIterator<Item = i64>) -> Rules {
    let calls: BTreeSet<i64> = calls.into_iter().collect();
    calls.into_iter().map(|call| (call, Vec::new())).collect()
}

/// Compiles a filter that returns an error for some calls, and allows the others.
///
/// # Errors
///
/// Seccompiler's error, where the rules make no filter.
pub(crate) fn all_but(refused: Rules, error: i32) -> Result<BpfProgram, BackendError> {
    let error = SeccompAction::Errno(error.unsigned_abs());
    compile(refused, SeccompAction::Allow, error)
}

/// Compiles a filter.
///
/// # Errors
///
/// Seccompiler's error, where the rules make no filter.
pub(crate) fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, listed, machine)?.try_into()
}

/// The result that stands for "the next list decides" until [`in_order`] has put a jump in its place.
const NEXT: SeccompAction = SeccompAction::Log;
/// Instructions of BPF: the result, and a jump over so many instructions.
const RESULT: u16 = 0x06;
const JUMP: u16 = 0x05;

/// Compiles one filter from several lists, each with its result. The first list that has a call decides, and where none has it,
/// `otherwise` is the result. (Seccompiler's own filters have one list.)
///
/// # Errors
///
/// Seccompiler's error, where the rules make no filter.
pub(crate) fn in_order<const N: usize>(
    lists: [(Rules, SeccompAction); N],
    otherwise: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let mut program = BpfProgram::new();
    for (rules, result) in lists {
        let list = compile(rules, NEXT, result)?;
        for (left, instruction) in (0..list.len()).rev().zip(list) {
            program.push(match instruction == returning(NEXT) {
                true => unconditional(JUMP, u32::try_from(left).unwrap_or(u32::MAX)),
                false => instruction,
            });
        }
    }
    program.push(returning(otherwise));
    Ok(program)
}

fn returning(result: SeccompAction) -> sock_filter {
    unconditional(RESULT, result.into())
}

fn unconditional(code: u16, k: u32) -> sock_filter {
    let (jt, jf) = (0, 0);
    sock_filter { code, jt, jf, k }
}
