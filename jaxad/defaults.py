"""The sections of the methods in the default config: every key, its value, and what else it may be."""

from __future__ import annotations

# {method: ({stage: training steps}, its own keys)}. A stage that fits in one pass ignores its number of steps.
METHODS = {
    "patchcore": lambda: (
        dict(fit=0),
        dict(
            layers=("layer2", "layer3"),
            neighbourhood=3,  # side of the patch whose features are pooled
            descriptor="adaptive",  # adaptive: the authors' unfold and adaptive pooling | concat: average pooling
            layer_weights=(),  # a factor for the features of each layer; empty: 1
            layer_dim=1024,  # length per layer after pooling (adaptive)
            dim=1024,  # length of a descriptor (adaptive)
            coreset=0.1,  # fraction of the patches kept; 1 keeps all
            projection="linear",  # for choosing the coreset: linear (torch's default init) | gaussian | sparse | none
            projection_dim=128,
            start_points=10,  # first scores: mean distance to this many random patches; 0: a random first pick
            neighbours=1,
            squared=True,  # faiss returns squared distances and the authors take no root
            reweight_b=0,  # neighbours in the paper's eq. 7; 0: none, as in the authors' code
            # Departure: the article and the authors' code take the max. The mean of the highest 1 % of the patch scores
            # gave the better image AUROC on all real sets tried, README says which and by how much.
            image_score="top1%",  # max | top1% | mean
            ones_pass=True,  # move the BatchNorm averages as the authors' code does, see methods/patchcore.py
        ),
    ),
    "reverse_distillation": lambda: (
        dict(distil=3000),
        dict(
            cos_reduce="flat",  # flat: RD4AD's code | position: the article
        ),
    ),
    "anoseg": lambda: (
        dict(segment=20_000, detect=10_000),
        # The paper gives no weights, optimiser, length or mix; what is chosen and why: the README and losses/.
        dict(
            hard_aug=True,  # rotation, permutation and colour jitter of what is pasted (Table 3); False: CutPaste only
            adversarial=True,  # a critic on image and map (Table 3); needs reconstruction
            reconstruction=True,  # the image decoder with eq. 4; without adversarial it is fig. 8a's recon_no_adv
            coords=True,  # planes of coordinates beside the image (Table 3)
            map_channels=1,  # 3: as Table 6 prints it; the mask repeated, the mean over channels predicted
            input_range="01",  # 01 | pm1: how the encoder sees the image; a pretrained one sees ImageNet's mean and std
            width_mult=1.0,  # factor on the channels of all networks
            remat=False,  # compute activations again when going back, for memory; XLA on CPU undoes it
            p_anomaly=0.5,  # share of synthetic anomalies in a batch
            cutpaste=dict(  # options of the view 'cutpaste', see jaxad/data/synthesis/cutpaste.py
                variant="normal",  # normal: rectangles | scar | union
                level="image",  # image: the whole copy is augmented, then cut | patch: cut, then augmented
                perm_mode="halves",  # halves | quadrants
                mask_mode="paste",  # paste | diff: only where something changed
                min_change=0.0,  # draw again while the mean change over the paste is smaller, in [0, 1]
                source="same",  # same image | other image of the category
                allow_identity=False,  # of rotation and permutation, as CSI's code
                area=(0.02, 0.15),  # share of the image that a rectangle covers
                aspect=0.3,  # the most oblong rectangle, height to width or width to height
                jitter=0.1,  # strength of the colour jitter of every paste; 0: none
            ),
            seg_loss="l1",  # eq. 2: l1 | bce | balanced_l1, against the collapse to a map of ones
            w_seg=1.0,
            w_re=1.0,
            w_adv=0.01,  # pix2pix's ratio; as printed: 1
            adv_ramp=0,  # steps over which w_adv climbs from 0
            gan_loss="ns",  # ns | minimax: eq. 3 as printed | lsgan
            g_steps=1,  # steps of the segmenter for one of the critic; ALOCC takes 2
            d_image_masked=False,  # the critic sees each image times its map
            ema=0.0,  # 0.999: predict with a moving average of the segmenter
            detector=dict(  # the second stage: section 3.4, Appendix A
                enabled=True,
                feature_matching=True,  # L_fea (Table 5)
                input_map=True,  # False: neither network sees the map (Table 5)
                anomaly_cls=True,  # L_cls (Table 5)
                g_input="image_map",  # image_map | image: what the generator sees beside coordinates
                w_re=1.0,
                w_adv=0.01,
                w_fea=1.0,
                cls_dup_real=True,  # the real term that eq. 6 and L_cls both print counts twice
                pre_activation=False,  # f of eq. 5 before BatchNorm and LeakyReLU of Conv 7
                alpha=1.0,  # eq. 5
                beta=0.1,
            ),
        ),
    ),
    "siamese_unet": lambda: (
        dict(contrast=3000, deviate=1000),
        # The paper gives none of these numbers; what is chosen and why: methods/siamese_unet.py, losses/, the README.
        dict(
            attention="cpam",  # cpam | cbam (Table 4, right) | none (Table 4, "w/o CPAM")
            attention_at="pre",  # pre: before each decoder layer | post: after it
            cpam=dict(
                fusion="mul_rms",  # mul_rms: eq. 5 up to a factor per image | mul: as printed | gated | sum: DANet
                channel_softmax="danet",  # danet | plain | cosine
                block=512,  # queries at once where there are 1024 positions or more; 0: all
                kv_pool=1,  # 2: keys and values at half the resolution
                value_reduction=1,  # 8: values as narrow as keys, then projected back
            ),
            anomalies="synthetic",  # synthetic: "(s)" | real: "(r)", those that data.n_anomalies moves into training
            contrastive=True,  # False: stage 1 restores normal images and nothing else (Table 4, "w/o contrastive")
            deviation=True,  # False: no stage 2 (Table 4, "w/o finetune")
            cos_reduce="flat",  # eq. 1: flat | position
            cossim_on=("n", "naug"),  # the images that eq. 1 is taken of; ("n",): without the rotated copies
            con_reduce="flat",  # eq. 6: flat | gap | position
            con_stop="none",  # anchor: eq. 6 does not move the features of the normal image
            margin=0.2,
            lambda_con=0.1,
            lambda_cos=1.0,
            rotation="small",  # small: uniform in +-degrees | k90: quarter turns | any: use with con_reduce=gap
            degrees=15.0,
            bn_stats="normal",  # BatchNorm statistics of: normal (N and N_aug) | joint (all three) | separate passes
            score="topk",  # S_i of eq. 8: topk | mean | literal (as printed) | zscore (needs p of about 5)
            k=0.05,  # fraction of the positions
            p=0.5,  # what the score of an anomaly should reach
            keep=1.0,  # weight of eq. 1 on normal images in stage 2; 0: the paper's
            masked=False,  # score an anomaly inside its mask only (needs synthetic anomalies, or real ones with masks)
            deviate=dict(
                batch_size=8, lr=2e-4, b1=0.9, b2=0.999, clip=1.0
            ),  # the rest as in optim; so many N and A each
            synthesis=dict(  # options of the view 'nsa', see jaxad/data/synthesis; auto, 0, () and -1: the class's own
                kind="auto",  # auto | object | texture
                foreground="auto",
                gradients="auto",  # auto | normal | mixed
                patches=0,
                height=(),
                width=(),
                min_object=-1.0,
                min_overlap=-1.0,
                destination="other",  # other: A is another image than N, as from a pool | own: N itself is spoilt
            ),
        ),
    ),
    "padim": lambda: (
        dict(fit=0),
        dict(
            layers=("layer1", "layer2", "layer3"),
            # Departure: the paper draws channels. With few images that is a lottery, see the README; random directions
            # of all channels are not.
            embedding="semi_orthogonal",  # semi_orthogonal | channels
            dim=100,  # how many; 550 for ResNet-50 and wider; 0: as many as the layers have channels
            dim_seed=1024,  # of that draw, which is one for all categories
            regularisation=0.01,  # added to the diagonal of every covariance
        ),
    ),
    "spd": lambda: (
        dict(pretrain=10_000),
        # The poster gives eta and nothing else; what is chosen and why: methods/spd.py, data/synthesis/smooth_blend.py.
        dict(
            base="simsiam",  # simsiam | moco | simclr | supervised
            eta=0.1,  # weight of the spot-the-difference term; 0: the base alone
            term="auto",  # auto: xent for supervised, cosine for the others | cosine | xent (ablation "w/ Xent")
            local="smooth_blend",  # x~-: smooth_blend | cutpaste (ablation "w/ CutPaste")
            spd_anchor="shared",  # x_i: shared (the first strong view, x~+- in its crop) | plain | rrc
            neg_base="same",  # x~- is a local change of: same (x~+ itself) | independent (another weak view)
            spd_space="auto",  # auto: pred_sg for simsiam, z for the others | pred_sg | z
            spd_moco="query",  # the network that sees x~+-: query | key
            bn_concat_views="auto",  # all views in one BatchNorm batch; auto: for simclr | yes | no
            strong="auto",  # augmentation of x and x^; auto: the base's | simsiam | moco_v1 | simclr | supervised
            crop_size=0,  # pixels of the views; 0: those of the images
            epochs=0.0,  # passes over the training images; 0: train.steps.pretrain says how long
            warmup_epochs=0.0,  # beside optim.warmup, which is in steps
            lr_batch=256,  # the batch size that optim.lr is for: it grows in proportion; 0: optim.lr as it is
            ema=0.0,  # 0.999: what is evaluated and saved is a moving average of the encoder
            simsiam=dict(dim=2048, predictor_dim=512, fixed_predictor_lr=True, zero_init=True),
            moco=dict(
                queue=65_536, dim=128, temperature=0.2, momentum=0.999, head="mlp", bn_group=32
            ),  # head: | linear
            simclr=dict(dim=128, layers=3, temperature=0.1, negatives="ntxent"),  # negatives: | poster
            smooth_blend=dict(
                area=(0.005, 0.01),  # share of the image that the patch covers
                aspect=0.3,  # the most oblong patch
                jitter=(0.4, 0.4, 0.4, 0.1),  # of the patch: brightness, contrast, saturation, hue
                alpha_sigma=4.0,  # of the soft edge, in pixels of an image of 224
                fg_outside="context",  # beside the patch lies: context (what surrounds its source) | zero | edge
                n_patches=1,
                renormalise=False,  # the soft edge reaches 1 in the middle
            ),
            # Evaluation on held-out images with classes: neighbours and temperature of k-NN, a linear classifier, and
            # how many training images they see
            probe=dict(knn=20, temperature=0.07, linear=True, limit=20_000),
        ),
    ),
    "two_class": lambda: (
        dict(classify=400, segment=400),
        # The poster names its models nowhere; see methods/two_class.py.
        dict(
            head_only=False,  # the backbone stays as it is
            backbone_lr=0.1,  # learning rate of the backbone, as a factor on optim.lr
            balance=True,  # both classes weigh the same in the classifier's loss
            decoder=(256, 128, 64, 32),  # channels of the U-Net, from layer3's grid on
            w_bce=1.0,
            w_dice=1.0,
            flip=True,
            jitter=0.1,
            image_score="classifier",  # classifier | map
        ),
    ),
    "pattern_generation": lambda: (
        dict(pretrain=50_000, generate=50_000, measure=0, compare=20_000),
        # Most of this is not in the paper; what is chosen and why: methods/pattern_generation.py, models/, the README.
        dict(
            n=4,  # patches per side of the image: 4 to 7
            n_select="fixed",  # fixed: n | nmse: that of train_n whose patches of normal images are best predicted
            train_n=(4, 5, 6, 7),  # the partitions that training draws from, for each image
            patch=0,  # side of a patch as the networks see it, pixels; 0: data.image_size / n
            coverage="rows_cols",  # rows_cols | rows (section III-C) | raster (as numbered in III-A) | wrap
            canonicalize=True,  # every triple is turned so that it is read from left to right
            combine="min",  # eq. 5 over directions: min | mean | max | single_lr | single_rl
            axis_combine="min",  # of what rows say and what columns say: min | max
            score="prob",  # of an image: prob (least similar patch) | pixel (highest pixel) | product
            gate=False,  # a patch's mask counts as much as the patch is dissimilar
            pretrain=False,  # train the generator alone, on any images; start.stage=pretrain goes on from it
            generator="swin",  # swin | cyclegan_resnet9 | cyclegan_resnet6 (Table 3) | copy_near: none
            swin=dict(
                embed_stride=1,  # pixels of a token's side; 4: Swin's own
                window=7,
                embed_dim=24,
                enc_depths=(2, 2, 6, 2),
                dec_depths=(2, 2, 6, 2),
                heads=(3, 6, 12, 24),
                share_encoders=False,
                head_norm=False,  # LayerNorm before the fusion head
                drop_path=0.0,
            ),
            cnn=dict(width=64, tanh=False),  # 45: about as many parameters as swin has
            context_mask_ratio=0.0,  # share of the 4x4 cells of both context patches that training blanks
            remat=False,  # compute activations again when going back, for memory
            compare=dict(
                enabled=True,  # False: the squared error of the prediction is the map
                widths=(64, 128, 256),  # of the three convolution blocks
                sim_pool="mean_max",  # mean_max | flatten
                diff_feature=False,  # |f_G - f_O| beside both
                mask_loss="sigmoid_l1",  # eq. 4: sigmoid_l1 | l1 | bce_dice | as_printed
                mask_norm="mean",  # mean | sum: of the L1 norm in eq. 4
                hinge_on="score",  # eq. 4: score | prob, as printed
                batch_size=64,
                lr=1e-3,
                weight_decay=1e-4,
            ),
            pairs=dict(  # what the comparison network is trained on, see data/synthesis/pattern_pair.py
                source="synthetic",  # synthetic | labelled: real anomalies that data.n_anomalies moves into training
                clean=0.35,  # shares: the patch as it is
                hard=0.15,  # brighter, noisier, shifted by a pixel, and still the same
                defect=0.5,  # with a defect
                context=0.0,  # as it is, predicted from patches with a defect (fig. 4)
                wrong=0.0,  # another patch
                mask_pool="max",  # max | mean: of the mask over 4x4 pixels
                textures="",  # a folder of images to blend in; empty: other normal images, and flat colours
            ),
        ),
    ),
}
