"""The names that gin files use, and what each stands for; modules are imported only if a configuration names them."""

CONFIGURABLES = {
    "run": "trainer.run:Run",
    "pretraining": "trainer.tasks.pretraining:PretrainingConfig",
    "pretraining_data": "trainer.data.pretraining_data:PretrainingData",
    "encoder": "trainer.models.encoder:EncoderConfig",
    "masking": "trainer.data.masking:MaskingConfig",
    "adamw": "trainer.optimizers.adamw:AdamW",
    "sgd": "trainer.optimizers.adamw:SGD",
    "linear_schedule": "trainer.optimizers.schedules:LinearSchedule",
    "cosine_schedule": "trainer.optimizers.schedules:CosineSchedule",
    "constant_schedule": "trainer.optimizers.schedules:ConstantSchedule",
}
