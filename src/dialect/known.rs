//! What a body may hold that costs no more than its bytes and its output maximum say.
//!
//! `hard` promises that a budget holds, and a vendor may invent a member or a kind of content any day that has it read
//! what is not in the body, or work that nobody told it to bound. So the lists here are of what is harmless: whatever is
//! neither on them nor read elsewhere is unknown, and `hard` takes no request that holds it.

use super::metered::looks_like;

/// Members of a body, of both vendors and of servers that are compatible with one, in order.
const MEMBERS: [&str; 93] = [
    "access_programs",
    "add_generation_prompt",
    "add_special_tokens",
    "allowed_token_ids",
    "anthropic_version",
    "audio",
    "background_options",
    "bad_words",
    "billing_policy",
    "cache_control",
    "cache_salt",
    "chat_template_kwargs",
    "client_metadata",
    "continue_final_message",
    "diagnostics",
    "dimensions",
    "documents",
    "echo",
    "enable_thinking",
    "encoding_format",
    "fallback_credit_token",
    "frequency_penalty",
    "function_call",
    "guided_choice",
    "guided_decoding_backend",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "ignore_eos",
    "image",
    "include",
    "include_reasoning",
    "include_stop_str_in_output",
    "input_type",
    "length_penalty",
    "logit_bias",
    "logprobs",
    "max_tool_calls",
    "metadata",
    "min_p",
    "min_tokens",
    "mirostat",
    "mirostat_eta",
    "mirostat_tau",
    "no_repeat_ngram_size",
    "output_config",
    "output_format",
    "parallel_tool_calls",
    "presence_penalty",
    "priority",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "prompt_logprobs",
    "prompt_truncate_len",
    "random_seed",
    "reasoning",
    "reasoning_effort",
    "reasoning_format",
    "repeat_penalty",
    "repetition_penalty",
    "request_id",
    "response_format",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "safety_identifier",
    "seed",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop",
    "stop_sequences",
    "stop_token_ids",
    "store",
    "structured_outputs",
    "suffix",
    "temperature",
    "text",
    "tfs_z",
    "thinking",
    "thinking_budget",
    "tool_choice",
    "top_a",
    "top_k",
    "top_logprobs",
    "top_p",
    "truncate_prompt_tokens",
    "truncation",
    "typical_p",
    "usage",
    "user",
    "user_profile_id",
    "verbosity",
    "workspace_id",
];

/// Kinds of items and of parts of their content.
const KINDS: [&str; 17] = [
    "additional_tools",
    "compaction",
    "configuration_update",
    "content",
    "fallback",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_list_tools",
    "mcp_tool_listing",
    "program",
    "reasoning",
    "redacted_thinking",
    "refusal",
    "thinking",
    "tool_addition",
    "tool_reference",
    "tool_removal",
];

/// Last words of the kinds that tell what was said, called or given back before: history, and all in the body.
const TOLD: [&str; 7] = ["call", "error", "output", "result", "text", "use", "message"];

/// Whether the member called `name` is known to be harmless.
pub(super) fn is_member(name: &str) -> bool {
    MEMBERS.binary_search(&name).is_ok()
}

/// Whether content of the `type` called `name` is known to be no more than what stands in it.
pub(super) fn is_kind(name: &str) -> bool {
    TOLD.contains(&last_word(name)) || KINDS.contains(&name)
}

/// Whether what the member called `name` holds is a tool, or a list of such: some parsers match names without case.
pub(super) fn is_tools(name: &str) -> bool {
    const WORDS: [&str; 6] = ["tool", "tools", "toolset", "toolsets", "definition", "definitions"];
    let last = last_word(name);
    WORDS.iter().any(|word| *word == last || looks_like(last, word))
}

fn last_word(name: &str) -> &str {
    name.rsplit(['_', '-', '.']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_are_in_order() {
        assert!(MEMBERS.is_sorted());
    }
}
