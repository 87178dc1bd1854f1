"""Contrastive losses, as three choices with one meaning at any number of workers.

pools       where positives and negatives come from: a bank of all samples, a queue of the last ones, or the batch
objectives  what is made of their scores
ring, slow  a first-in-first-out memory; a head that follows another one slowly

Student and teacher each give unit vectors g_s, g_t (b, d) for this worker's rows. Scores are inner products; nothing is
divided by a temperature before the objective. No step copies rows of a memory: anchors are scored against all of it in
one product (b, N), of which drawn scores are taken and others masked.
"""
