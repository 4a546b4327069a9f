//! Tokens kept in Secrets.

use k8s_openapi::api::{
    authentication::v1::TokenReview,
    core::v1::{Secret, ServiceAccount},
};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_holds_an_accounts_token() -> TestResult {
    let lab = Lab::new().await?;
    let params = PostParams::default();
    let accounts: Api<ServiceAccount> = lab.api("default");
    let secrets: Api<Secret> = lab.api("default");
    let account = json!({"metadata": {"name": "robot"}, "secrets": [{"name": "robot-token"}]});
    accounts.create(&params, &object(account)?).await?;
    let secret = json!({"metadata": {"name": "robot-token",
        "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token"});
    let data = async || -> Result<_, kube::Error> {
        Ok(secrets.get("robot-token").await?.data.unwrap_or_default())
    };
    secrets.create(&params, &object(secret)?).await?;
    until("the token is there", || async {
        let data = data().await?;
        Ok(["token", "ca.crt", "namespace"]
            .iter()
            .all(|key| data.contains_key(*key)))
    })
    .await?;
    let token = String::from_utf8(data().await?["token"].0.clone())?;
    let reviews: Api<TokenReview> = Api::all(lab.client.clone());
    let review = async || -> Result<_, Box<dyn Error + Send + Sync>> {
        let asked = object(json!({"metadata": {}, "spec": {"token": token}}))?;
        let made: TokenReview = reviews.create(&params, &asked).await?;
        Ok(made.status.unwrap_or_default())
    };
    let user = review().await?.user.unwrap_or_default();
    assert_eq!(
        user.username.as_deref(),
        Some("system:serviceaccount:default:robot")
    );
    secrets
        .delete("robot-token", &DeleteParams::default())
        .await?;
    until("the account has forgotten it", || async {
        Ok(accounts
            .get("robot")
            .await?
            .secrets
            .unwrap_or_default()
            .is_empty())
    })
    .await?;
    assert_ne!(
        review().await?.authenticated,
        Some(true),
        "the token died with its Secret"
    );
    Ok(())
}
