"""State, write, read and decay of every recurrent layer, as hooks of one shape whatever the kind of layer.

A layer with H heads keeps a state S [H, K, V] per head (K keys, V values) and, position by position,

    S_t = D_t ∘ S_{t-1}                       decay
    S_t = S_t - e_t c_t (c_tᵀ S_t)            erase: gated delta nets alone
    S_t = S_t + k_t v_tᵀ                      write, of rank one
    y_t = q_tᵀ S_t                            read

| kind | H, K, V | k | v | D | q | source |
|---|---|---|---|---|---|---|
| Mamba, FalconMamba, Jamba | 1, states, channels | B | Δ x | exp(Δ A), each entry's own | C | arXiv 2312.00752 |
| Mamba-2 | heads, states, head dim | B | Δ x | exp(Δ A), one per head | C | arXiv 2405.21060 |
| gated delta net | value heads, key and value dim | k/‖k‖ | β v | α, one per head | q/‖q‖/√K | arXiv 2412.06464 |
| short convolution | 1, 1, channels | 1 | what it gives | 0 | 1 | LFM2 |

Hooks below ``blocks.{l}.{mixer}.recurrence.`` (``RecurrentLayer.hook(name)`` gives the whole name; B sequences, T
positions, C channels of the convolution; keys that several heads share stand once per head):

    hook_conv_in           [B,T,C]       what the causal convolution reads
    hook_conv              [B,T,C]       what it gives, before its nonlinearity
    hook_read              [B,T,H,K]     q
    hook_write_key         [B,T,H,K]     k        the two factors of a write, apart
    hook_write_value       [B,T,H,V]     v
    hook_erase_key         [B,T,H,K]     c        gated delta nets alone; an edit of a write leaves them as they are
    hook_erase_strength    [B,T,H]       e = β
    hook_y                 [B,T,H,V]     y, before skip connection, gate and norm
    hook_strength          [B,T,H]       how much of its content a write takes in: Δ ([B,T,V] in a Mamba), β; in a short
                                         convolution its first gate [B,T,V]
    hook_log_decay         [B,T,H]       logarithm of D: gated delta nets alone (elsewhere Δ decides it)
    hook_gain              like y        what y and the skip connection are multiplied by, gate and norm together
    hook_decay             [B,T,H,1,1]   D, or [B,T,1,K,V] in a Mamba
    hook_write             [B,T,H,K,V]   k vᵀ
    hook_state             [B,T,H,K,V]   S after the write, before edits are carried on: an edited entry is set
    hook_carried           [B,T,H,K,V]   S as carried on after all edits; an edit changes only what is read of it

An edit at any of the others goes on from there: later states follow it. The last three (and a Mamba's decay) are as
large as all states together, exist only while a hook asks for them, and are refused beyond ``MOST_BYTES``. Where that
is too much, ``RecurrentLayer.in_blocks(f, size)`` calls ``f(start, states [B,≤size,H,K,V])`` block by block, and what
it returns goes on from there as well.

Without such hooks a layer runs its own fused scan; with them, or where a factor was edited, an open one position by
position, equal to it to rounding. While a cache continues a text, transformers' own forward pass runs and these hooks
are silent.
"""

from workbench.models.recurrent.factors import Factors as Factors
from workbench.models.recurrent.hooks import attach as attach
from workbench.models.recurrent.layers import RecurrentLayer as RecurrentLayer
from workbench.models.recurrent.layers import recurrent_layers as recurrent_layers
from workbench.models.recurrent.layers import states_at as states_at
from workbench.models.recurrent.layers import states_of as states_of
from workbench.models.recurrent.open_scan import MOST_BYTES as MOST_BYTES
