"""How the embedded model in ckpt/pocket is made and measured."""
