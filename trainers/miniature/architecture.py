"""The shapes of the miniature Stable Diffusion and its CLIP. No weights, no training."""

from __future__ import annotations

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel

from trainers.miniature.pictures import SIZE
from trainers.miniature.vocabulary import CONTEXT

TEXT_WIDTH = 64
HEAD_WIDTH = 16


def clip(vocabulary: int, end: int, start: int) -> CLIPModel:
    text = dict(vocab_size=vocabulary, hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, num_hidden_layers=2,
                num_attention_heads=TEXT_WIDTH // HEAD_WIDTH, max_position_embeddings=CONTEXT, projection_dim=64,
                eos_token_id=end, bos_token_id=start, pad_token_id=end)
    vision = dict(hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=6, image_size=SIZE,
                  patch_size=8, projection_dim=64)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def vae() -> AutoencoderKL:
    """64 × 64 × 3 → 4 × 8 × 8, Stable Diffusion's factor of 8."""
    widths = (16, 32, 48, 64)
    return AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                         block_out_channels=widths, layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=SIZE)


def unet() -> UNet2DConditionModel:
    """Stable Diffusion v1.5's block types on two resolutions, 8 × 8 with cross-attention and 4 × 4 without."""
    return UNet2DConditionModel(sample_size=SIZE // 8, in_channels=4, out_channels=4, block_out_channels=(32, 64),
                                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                                layers_per_block=1, cross_attention_dim=TEXT_WIDTH, attention_head_dim=4, norm_num_groups=8)


def scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal SNR (arXiv 2305.08891): with epsilon, brightness would follow the initial noise."""
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
                         rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
